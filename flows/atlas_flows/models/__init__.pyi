from .finetuning import Tuning, plan_versions
from .outcomes import Promoted, Trained, TrainingPlan
from .registration import register_installed
from .server import model_repository, model_store
from .store import ModelStore
from .training import TrainingOrder, train_version

__all__ = [
    "ModelStore",
    "Promoted",
    "Trained",
    "TrainingOrder",
    "TrainingPlan",
    "Tuning",
    "model_repository",
    "model_store",
    "plan_versions",
    "register_installed",
    "train_version",
]
