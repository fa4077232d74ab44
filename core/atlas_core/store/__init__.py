"""The case store: volumes and label maps as files. `backup` is the store's and the catalog's."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
