"""Labels as DICOM objects, written for the series that a CT came from, and such objects as labels.

Functions are pure: headers, label maps and organs in, `pydicom.Dataset`s out. What a CT series is,
and where its voxels lie, `atlas_core.imaging.dicom_reader` says.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
