from .diagnosis import Bounds, diagnose
from .findings import Condition, SiteFinding

__all__ = [
    "Bounds",
    "Condition",
    "SiteFinding",
    "diagnose",
]
