"""How good models are: Dice and surface Dice by organ.

`phantoms` runs exported models on phantoms, with ONNX Runtime.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
