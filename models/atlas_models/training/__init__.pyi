from .catalog_training import TrainOutcome, TrainRequest, train_from_catalog
from .network_training import (
    Diverged,
    RunOptions,
    TrainedNetwork,
    TrainingProgress,
    finetune,
    train,
)
from .patches import PatchSampler, TrainingCase, phantom_case
from .stored_cases import LabelChoice, StoredCases, choose_cases, load_cases

__all__ = [
    "Diverged",
    "LabelChoice",
    "PatchSampler",
    "RunOptions",
    "StoredCases",
    "TrainOutcome",
    "TrainRequest",
    "TrainedNetwork",
    "TrainingCase",
    "TrainingProgress",
    "choose_cases",
    "finetune",
    "load_cases",
    "phantom_case",
    "train",
    "train_from_catalog",
]
