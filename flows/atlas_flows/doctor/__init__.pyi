from .diagnosis import Bounds, diagnose
from .findings import Diagnosis, Finding

__all__ = [
    "Bounds",
    "Diagnosis",
    "Finding",
    "diagnose",
]
