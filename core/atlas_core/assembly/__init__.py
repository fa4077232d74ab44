"""Label assembly (§3.2 ⑥): the preferred label of every organ, combined into one label map."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
