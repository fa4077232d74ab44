from .codes import organs_of
from .instances import as_bytes
from .label_objects import LabelObject, References, Segment, references_of
from .measurement_reports import measurement_report
from .opening import open_labels
from .parametric_maps import parametric_map
from .segmentations import segmentation
from .source_series import SourceSeries, read_headers
from .structure_sets import structure_set

__all__ = [
    "LabelObject",
    "References",
    "Segment",
    "SourceSeries",
    "as_bytes",
    "measurement_report",
    "open_labels",
    "organs_of",
    "parametric_map",
    "read_headers",
    "references_of",
    "segmentation",
    "structure_set",
]
