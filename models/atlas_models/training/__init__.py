"""Training and fine-tuning on partial labels (steps ① and ⑦)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
