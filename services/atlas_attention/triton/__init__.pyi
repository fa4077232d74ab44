from .client import CHANNEL_OPTIONS, TritonOptions
from .ensemble import ServedEnsemble, ServerModels
from .predictor import TritonPredictor

__all__ = [
    "CHANNEL_OPTIONS",
    "ServedEnsemble",
    "ServerModels",
    "TritonOptions",
    "TritonPredictor",
]
