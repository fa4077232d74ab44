from .cropped_maps import CroppedMapReader, CroppedMapsWriter, read_cropped
from .itk_header import read_segments
from .nifti_header import AffineSource
from .nifti_reader import (
    MAX_VOXELS,
    LabelVolume,
    label_dtype,
    open_slabs,
    read_header,
    read_label,
    read_label_pieces,
    read_label_values,
    read_pieces,
    read_stored,
    read_stored_slabs,
    read_volume,
)
from .nifti_writer import SlabWriter, write_pieces, write_volume
from .nrrd_writer import NrrdSegment, write_nrrd
from .slab_reader import SlabReader, spool_slabs
from .volume import ValueRange, Volume, content_sha256, content_sha256_of, distinct_values
from .voxel_decoder import VoxelCoding

__all__ = [
    "MAX_VOXELS",
    "AffineSource",
    "CroppedMapReader",
    "CroppedMapsWriter",
    "LabelVolume",
    "NrrdSegment",
    "SlabReader",
    "SlabWriter",
    "ValueRange",
    "Volume",
    "VoxelCoding",
    "content_sha256",
    "content_sha256_of",
    "distinct_values",
    "label_dtype",
    "open_slabs",
    "read_cropped",
    "read_header",
    "read_label",
    "read_label_pieces",
    "read_label_values",
    "read_pieces",
    "read_segments",
    "read_stored",
    "read_stored_slabs",
    "read_volume",
    "spool_slabs",
    "write_nrrd",
    "write_pieces",
    "write_volume",
]
