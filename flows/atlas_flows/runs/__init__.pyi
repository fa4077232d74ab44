from .case_outcomes import (
    CaseOutcome,
    CasesFailed,
    Outcome,
    ProgressCounter,
    RunSummary,
    candidates,
    observed_by,
)
from .file_lock import exclusive_run

__all__ = [
    "CaseOutcome",
    "CasesFailed",
    "Outcome",
    "ProgressCounter",
    "RunSummary",
    "candidates",
    "exclusive_run",
    "observed_by",
]
