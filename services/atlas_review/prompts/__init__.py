"""Click prompts: what people point at, and the nnInteractive server that makes masks of it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
