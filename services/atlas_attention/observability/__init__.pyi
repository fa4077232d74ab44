from .metrics import Metrics
from .tracing import Tracer

__all__ = [
    "Metrics",
    "Tracer",
]
