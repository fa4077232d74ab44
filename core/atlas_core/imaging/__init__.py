"""Volumes and label maps: NIfTI read and written, whole or slab by slab.

By their own names, as they load much: `dicom_reader` (pydicom), `label_maps` (SciPy), `pictures`
(Pillow) and `resampling` (numba).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
