"""Label assembly (§3.2 ⑥): of every organ the label that counts, put together into one map."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
