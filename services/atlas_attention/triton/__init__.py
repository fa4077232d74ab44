"""Triton: which models it has loaded, and windows predicted by them.

Only this package imports tritonclient. `shared_memory` is imported by its own name,
because it needs neither tritonclient nor fusion.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
