from .case_outcomes import (
    CaseOutcome,
    CasesFailed,
    Outcome,
    ProgressCounter,
    RunSummary,
    candidates,
    observed_by,
)
from .file_lock import alone

__all__ = [
    "CaseOutcome",
    "CasesFailed",
    "Outcome",
    "ProgressCounter",
    "RunSummary",
    "alone",
    "candidates",
    "observed_by",
]
