from .client import CHANNEL_OPTIONS
from .predictor import TritonOptions, TritonPredictor

__all__ = [
    "CHANNEL_OPTIONS",
    "TritonOptions",
    "TritonPredictor",
]
