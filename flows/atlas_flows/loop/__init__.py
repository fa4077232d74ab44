"""Flows `iterate` (`flow`) and `revise` (`revise_flow`): the loop, turn by turn."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
