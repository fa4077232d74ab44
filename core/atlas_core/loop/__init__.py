"""The iterations of the loop: their steps so far, and the outcome of their review."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
