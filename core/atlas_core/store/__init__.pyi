from .case_store import COMBINED_LABELS, SEGMENTATIONS, CaseStore, PredictionDraft
from .filesystem import Requirement, check_filesystem

__all__ = [
    "COMBINED_LABELS",
    "SEGMENTATIONS",
    "CaseStore",
    "PredictionDraft",
    "Requirement",
    "check_filesystem",
]
