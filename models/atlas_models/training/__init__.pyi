from .catalog_training import TrainOutcome, TrainRequest, train_from_catalog
from .network_training import (
    Diverged,
    RunOptions,
    TrainedNetwork,
    TrainingProgress,
    finetune,
    train,
)
from .nnunet_data import NnunetCase, write_raw
from .nnunet_training import NnunetRun, train_by_nnunet
from .patches import PatchSampler, TrainingCase, phantom_case
from .stored_cases import LabelChoice, StoredCases, choose_cases, load_cases

__all__ = [
    "Diverged",
    "LabelChoice",
    "NnunetCase",
    "NnunetRun",
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
    "train_by_nnunet",
    "train_from_catalog",
    "write_raw",
]
