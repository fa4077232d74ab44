from .catalog_training import (
    PROVENANCE_FILE,
    TrainOutcome,
    TrainRequest,
    provenance_file,
    train_from_catalog,
)
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
from .stored_cases import (
    ChosenCase,
    LabelChoice,
    StoredCases,
    choose_cases,
    data_key,
    is_validation,
    load_cases,
    read_masks,
    require_labelled,
)

__all__ = [
    "PROVENANCE_FILE",
    "ChosenCase",
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
    "data_key",
    "finetune",
    "is_validation",
    "load_cases",
    "phantom_case",
    "provenance_file",
    "read_masks",
    "require_labelled",
    "train",
    "train_by_nnunet",
    "train_from_catalog",
    "write_raw",
]
