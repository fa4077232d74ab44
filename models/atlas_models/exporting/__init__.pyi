from .checkpoints import read_checkpoint, tensors_of, unpickled
from .onnx_export import (
    NO_SHA256,
    build_graph,
    export_model,
    load_network,
    measure_parity,
    quiet_exporter,
    set_metadata,
    spec_of,
    wrap_network,
    write_graph,
)
from .weights import WEIGHTS_FILE, load_weights, read_weights, write_weights

__all__ = [
    "NO_SHA256",
    "WEIGHTS_FILE",
    "build_graph",
    "export_model",
    "load_network",
    "load_weights",
    "measure_parity",
    "quiet_exporter",
    "read_checkpoint",
    "read_weights",
    "set_metadata",
    "spec_of",
    "tensors_of",
    "unpickled",
    "wrap_network",
    "write_graph",
    "write_weights",
]
