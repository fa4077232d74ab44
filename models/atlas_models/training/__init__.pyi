from .patches import PatchSampler, TrainingCase, phantom_case
from .stored_cases import LabelChoice, StoredCases, choose_cases, load_cases
from .training import Diverged, Progress, Run, Trained, finetune, train

__all__ = [
    "Diverged",
    "LabelChoice",
    "PatchSampler",
    "Progress",
    "Run",
    "StoredCases",
    "Trained",
    "TrainingCase",
    "choose_cases",
    "finetune",
    "load_cases",
    "phantom_case",
    "train",
]
