from .state_machine import IterationStatus, LoopParameters, next_step
from .summary import iteration_status, summary_line

__all__ = [
    "IterationStatus",
    "LoopParameters",
    "iteration_status",
    "next_step",
    "summary_line",
]
