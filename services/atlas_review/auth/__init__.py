"""Accounts, roles, sign-ins, and the limits on failed sign-ins."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
