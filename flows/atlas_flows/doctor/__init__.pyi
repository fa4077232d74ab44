from .diagnosis import Bounds, diagnose
from .findings import Finding, Verdict

__all__ = [
    "Bounds",
    "Finding",
    "Verdict",
    "diagnose",
]
