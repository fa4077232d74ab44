from .exported_model import GRAPH_FILE, SPEC_FILE, exported_models, read_spec
from .triton_config import (
    CpuServing,
    GpuServing,
    Serving,
    config_text,
    in_service_of,
    model_config,
    specs_in,
)
from .triton_repository import TritonRepository

__all__ = [
    "GRAPH_FILE",
    "SPEC_FILE",
    "CpuServing",
    "GpuServing",
    "Serving",
    "TritonRepository",
    "config_text",
    "exported_models",
    "in_service_of",
    "model_config",
    "read_spec",
    "specs_in",
]
