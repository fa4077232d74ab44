"""From PACS and back: series received, de-identified on arrival and imported; labels sent home."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
