from .client import CHANNEL_OPTIONS
from .ensemble import ServedEnsemble, ServerModels
from .predictor import TritonOptions, TritonPredictor

__all__ = [
    "CHANNEL_OPTIONS",
    "ServedEnsemble",
    "ServerModels",
    "TritonOptions",
    "TritonPredictor",
]
