from .bulk_reads import cases_by_id, labels_by_case, newest_scores
from .catalog import Catalog
from .database import chunks, insert_new
from .model_registry import (
    CaseAgreement,
    Evaluation,
    OrganAgreement,
    Promotion,
    PromotionKind,
    TrainingLabel,
    evaluations,
    find_models,
    next_version,
    now,
    promotions,
    record_evaluation,
    record_promotion,
    record_training_labels,
    training_labels,
    truth_digest,
)
from .organ_schemes import choose_organs, extend_organs
from .rights import grant_review_rights

__all__ = [
    "CaseAgreement",
    "Catalog",
    "Evaluation",
    "OrganAgreement",
    "Promotion",
    "PromotionKind",
    "TrainingLabel",
    "cases_by_id",
    "choose_organs",
    "chunks",
    "evaluations",
    "extend_organs",
    "find_models",
    "grant_review_rights",
    "insert_new",
    "labels_by_case",
    "newest_scores",
    "next_version",
    "now",
    "promotions",
    "record_evaluation",
    "record_promotion",
    "record_training_labels",
    "training_labels",
    "truth_digest",
]
