from .predictor import CHANNEL_OPTIONS, TritonOptions, TritonPredictor

__all__ = [
    "CHANNEL_OPTIONS",
    "TritonOptions",
    "TritonPredictor",
]
