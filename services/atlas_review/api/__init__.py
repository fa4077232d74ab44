"""The REST API. One module per resource, each with its `router`; this face offers what the
MONAI Label API shares with it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
