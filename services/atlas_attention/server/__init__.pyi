from .allocator import tune_allocator
from .server import AttentionServer

__all__ = [
    "AttentionServer",
    "tune_allocator",
]
