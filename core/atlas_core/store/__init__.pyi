from .case_store import COMBINED_LABELS, SEGMENTATIONS, CaseStore, PredictionDraft

__all__ = ["COMBINED_LABELS", "SEGMENTATIONS", "CaseStore", "PredictionDraft"]
