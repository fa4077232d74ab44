"""Triton's model repository: exported models, their configuration, which version is in service."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
