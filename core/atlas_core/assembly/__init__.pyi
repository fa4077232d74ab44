from .case_assembly import (
    AssemblyInputs,
    Prediction,
    assemble_case,
    choose,
    read_assembled,
    write_masks,
)
from .history import Assemblies
from .post_processing import PostProcessing
from .priority import SOURCE_PRIORITY, preferred
from .records import Assembly

__all__ = [
    "SOURCE_PRIORITY",
    "Assemblies",
    "Assembly",
    "AssemblyInputs",
    "PostProcessing",
    "Prediction",
    "assemble_case",
    "choose",
    "preferred",
    "read_assembled",
    "write_masks",
]
