"""A release: which cases, in which files, splits and licences, with a card and statistics."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
