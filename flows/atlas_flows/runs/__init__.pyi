from .case_outcomes import (
    CaseOutcome,
    CasesFailed,
    Outcome,
    ProgressCounter,
    RunSummary,
    candidates,
    not_tried,
    observed_by,
)
from .file_lock import exclusive_run
from .parameters import (
    CaseIds,
    EnsembleKey,
    FilePath,
    ModelNames,
    ModelReferences,
    OrganNames,
    PostProcessingByOrgan,
)

__all__ = [
    "CaseIds",
    "CaseOutcome",
    "CasesFailed",
    "EnsembleKey",
    "FilePath",
    "ModelNames",
    "ModelReferences",
    "OrganNames",
    "Outcome",
    "PostProcessingByOrgan",
    "ProgressCounter",
    "RunSummary",
    "candidates",
    "exclusive_run",
    "not_tried",
    "observed_by",
]
