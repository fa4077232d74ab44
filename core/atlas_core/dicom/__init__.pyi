from .codes import organs_of
from .label_objects import LabelObject, References, Segment, frame_of_reference, references_of
from .opening import open_labels
from .segmentation import segmentation
from .source_series import SourceSeries, read_headers

__all__ = [
    "LabelObject",
    "References",
    "Segment",
    "SourceSeries",
    "frame_of_reference",
    "open_labels",
    "organs_of",
    "read_headers",
    "references_of",
    "segmentation",
]
