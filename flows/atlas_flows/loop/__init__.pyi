from .iteration import LoopParameters, Standing, next_step
from .summary import standing_of, told

__all__ = [
    "LoopParameters",
    "Standing",
    "next_step",
    "standing_of",
    "told",
]
