from .case_assembly import (
    AssemblyInputs,
    PseudoLabelMap,
    assemble_case,
    choose_labels,
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
    "PseudoLabelMap",
    "assemble_case",
    "choose_labels",
    "preferred",
    "read_assembled",
    "write_masks",
]
