"""Review: the revision queue with its leases, label versions, drafts, sign-ins and statistics."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
