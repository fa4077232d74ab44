"""Triton: which models it has loaded, and windows predicted by them.

Only this room knows tritonclient. `shared_memory` is imported by its own name: it needs nothing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
