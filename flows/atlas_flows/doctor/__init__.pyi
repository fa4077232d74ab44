from .diagnosis import Bounds, diagnose
from .findings import Finding, Health

__all__ = [
    "Bounds",
    "Finding",
    "Health",
    "diagnose",
]
