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
from .priority import SOURCE_PRIORITY, LabelPainter, paint_order, preferred
from .records import Assembly

__all__ = [
    "SOURCE_PRIORITY",
    "Assemblies",
    "Assembly",
    "AssemblyInputs",
    "LabelPainter",
    "PostProcessing",
    "PseudoLabelMap",
    "assemble_case",
    "choose_labels",
    "paint_order",
    "preferred",
    "read_assembled",
    "write_masks",
]
