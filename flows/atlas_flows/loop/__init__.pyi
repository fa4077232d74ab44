from .state_machine import IterationStatus, LoopParameters, Queued, StepKind, next_step
from .summary import iteration_status, summary_line

__all__ = [
    "IterationStatus",
    "LoopParameters",
    "Queued",
    "StepKind",
    "iteration_status",
    "next_step",
    "summary_line",
]
