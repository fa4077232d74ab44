from .archive import read_chunks, write_archive
from .attended_regions import OrganRegion
from .case_files import CaseFile, CaseFiles
from .label_checks import Upload, label_on_grid, organ_mask, read_upload, require_organ_values
from .shapes import Shape, ShapeKind, Shapes, VoxelBox, filled_part

__all__ = [
    "CaseFile",
    "CaseFiles",
    "OrganRegion",
    "Shape",
    "ShapeKind",
    "Shapes",
    "Upload",
    "VoxelBox",
    "filled_part",
    "label_on_grid",
    "organ_mask",
    "read_chunks",
    "read_upload",
    "require_organ_values",
    "write_archive",
]
