"""The volumes of a case: downloads, archives, contact sheets, attended regions, checks of uploads.

`contact_sheet_worker` runs as a process of its own.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
