from .state_machine import IterationStatus, LoopParameters, next_step
from .summary import iteration_status, told

__all__ = [
    "IterationStatus",
    "LoopParameters",
    "iteration_status",
    "next_step",
    "told",
]
