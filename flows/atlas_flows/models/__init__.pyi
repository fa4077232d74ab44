from .compatibility import require_compatible
from .ensembles import reconcile_at_start
from .outcomes import Promoted, Trained, TrainingPlan
from .registration import register_installed
from .server import model_repository, model_store, triton_models
from .site import Site
from .store import ModelStore
from .training_order import TrainingOrder
from .version_finetuning import FinetuningRequest, plan_versions
from .version_training import train_version

__all__ = [
    "FinetuningRequest",
    "ModelStore",
    "Promoted",
    "Site",
    "Trained",
    "TrainingOrder",
    "TrainingPlan",
    "model_repository",
    "model_store",
    "plan_versions",
    "reconcile_at_start",
    "register_installed",
    "require_compatible",
    "train_version",
    "triton_models",
]
