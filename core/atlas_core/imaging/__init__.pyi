from .nifti_reader import (
    MAX_VOXELS,
    LabelVolume,
    open_slabs,
    read_header,
    read_label,
    read_stored,
    read_stored_slabs,
    read_volume,
)
from .nifti_writer import SlabWriter, write_volume
from .slab_reader import SlabReader, spool_slabs
from .volume import Volume, content_sha256, distinct_values
from .voxel_decoder import VoxelCoding

__all__ = [
    "MAX_VOXELS",
    "LabelVolume",
    "SlabReader",
    "SlabWriter",
    "Volume",
    "VoxelCoding",
    "content_sha256",
    "distinct_values",
    "open_slabs",
    "read_header",
    "read_label",
    "read_stored",
    "read_stored_slabs",
    "read_volume",
    "spool_slabs",
    "write_volume",
]
