"""Scoring of one case: CT in, attention maps, pseudo label and sizes out, slab by slab."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
