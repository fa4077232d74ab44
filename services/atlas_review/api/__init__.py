"""The REST API. One module per resource, each with its `router`; here is what both APIs use."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
