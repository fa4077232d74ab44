from .imported_model import TRAINABLE, ImportedModel
from .monai import import_monai
from .nnunet import import_nnunet
from .nnunet_choices import NnunetChoices
from .nnunet_origin import NnunetOrigin, TrainingSource, network_of, read_origin, training_source
from .onnx import import_onnx

__all__ = [
    "TRAINABLE",
    "ImportedModel",
    "NnunetChoices",
    "NnunetOrigin",
    "TrainingSource",
    "import_monai",
    "import_nnunet",
    "import_onnx",
    "network_of",
    "read_origin",
    "training_source",
]
