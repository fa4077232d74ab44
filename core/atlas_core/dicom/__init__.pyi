from .codes import organ_of
from .segmentation import segmentation
from .source_series import SourceSeries, read_headers

__all__ = ["SourceSeries", "organ_of", "read_headers", "segmentation"]
