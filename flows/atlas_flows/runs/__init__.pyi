from .case_outcomes import (
    CaseOutcome,
    CasesFailed,
    Outcome,
    Progress,
    RunSummary,
    candidates,
    observed_by,
)
from .file_lock import alone

__all__ = [
    "CaseOutcome",
    "CasesFailed",
    "Outcome",
    "Progress",
    "RunSummary",
    "alone",
    "candidates",
    "observed_by",
]
