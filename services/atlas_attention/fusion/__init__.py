"""Fusion of soft predictions: windows, blending, and Eq. 1–4.

`gpu` holds the same kernels for CUDA; it is imported only where a GPU is used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
