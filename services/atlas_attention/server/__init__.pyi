from .malloc import bound_heap
from .server import AttentionServer

__all__ = [
    "AttentionServer",
    "bound_heap",
]
