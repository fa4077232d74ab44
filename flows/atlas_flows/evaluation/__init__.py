"""Results compared with a known truth, as the paper's tables and figures do."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
