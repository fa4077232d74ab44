from .outcomes import Promoted, Trained, TrainingPlan
from .registration import register_installed
from .server import model_repository, model_store, triton_models
from .store import ModelStore
from .version_finetuning import FinetuningRequest, plan_versions
from .version_training import TrainingOrder, train_version

__all__ = [
    "FinetuningRequest",
    "ModelStore",
    "Promoted",
    "Trained",
    "TrainingOrder",
    "TrainingPlan",
    "model_repository",
    "model_store",
    "plan_versions",
    "register_installed",
    "train_version",
    "triton_models",
]
