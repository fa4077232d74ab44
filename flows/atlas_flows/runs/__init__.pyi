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
from .landing import landing_path, write_file
from .parameters import (
    CaseIds,
    EnsembleKey,
    FilePath,
    LabelNames,
    ModelNames,
    ModelReferences,
    OrganNames,
    PostProcessingByOrgan,
    SchemeName,
)

__all__ = [
    "CaseIds",
    "CaseOutcome",
    "CasesFailed",
    "EnsembleKey",
    "FilePath",
    "LabelNames",
    "ModelNames",
    "ModelReferences",
    "OrganNames",
    "Outcome",
    "PostProcessingByOrgan",
    "ProgressCounter",
    "RunSummary",
    "SchemeName",
    "candidates",
    "exclusive_run",
    "landing_path",
    "not_tried",
    "observed_by",
    "write_file",
]
