from .bulk_reads import cases_by_id, labels_by_case, newest_scores
from .case_checks import checked_inputs, record_check, warnings_by_case
from .case_uids import record_uids, sharing_uids, uid_marks
from .catalog import Catalog
from .database import chunks, insert_new, make_engine
from .ensembles import (
    current_ensembles,
    described,
    ensemble_history,
    find_ensemble,
    record_ensemble,
    record_versions,
)
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
    "checked_inputs",
    "choose_organs",
    "chunks",
    "current_ensembles",
    "described",
    "ensemble_history",
    "evaluations",
    "extend_organs",
    "find_ensemble",
    "find_models",
    "grant_review_rights",
    "insert_new",
    "labels_by_case",
    "make_engine",
    "newest_scores",
    "next_version",
    "now",
    "promotions",
    "record_check",
    "record_ensemble",
    "record_evaluation",
    "record_promotion",
    "record_training_labels",
    "record_uids",
    "record_versions",
    "sharing_uids",
    "training_labels",
    "truth_digest",
    "uid_marks",
    "warnings_by_case",
]
