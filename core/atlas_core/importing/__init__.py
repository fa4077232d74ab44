"""Import: which files of a folder are a case, what their labels mean, and whether both can be."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
