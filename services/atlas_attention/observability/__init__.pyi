from .metrics import AttentionMetrics
from .tracing import Tracer

__all__ = [
    "AttentionMetrics",
    "Tracer",
]
