from .iterations import Iterations
from .steps import (
    PriorityListName,
    ReviewOutcome,
    cases_seen,
    record_step,
    review_outcome,
    steps_done,
    tasks_of,
)

__all__ = [
    "Iterations",
    "PriorityListName",
    "ReviewOutcome",
    "cases_seen",
    "record_step",
    "review_outcome",
    "steps_done",
    "tasks_of",
]
