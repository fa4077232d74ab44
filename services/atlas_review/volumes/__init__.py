"""Volumes as the page wants them: files, archives, contact sheets, attended regions.

`contact_sheet_worker` runs as a process of its own.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
