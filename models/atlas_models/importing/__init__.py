"""Models from elsewhere: nnU-Nets, MONAI networks and ONNX graphs, each with its own libraries."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
