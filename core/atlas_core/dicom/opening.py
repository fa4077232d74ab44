"""Which reader an object with labels needs."""

from __future__ import annotations

from pathlib import Path

from atlas_core.dicom.contours import StructureSetObject
from atlas_core.dicom.label_objects import KINDS, LabelObject, read_object
from atlas_core.dicom.segments import SegmentationObject


def open_labels(file: Path) -> LabelObject:
    """The DICOM SEG or RTSTRUCT in `file`, in memory as it was packed.

    Raises:
        NotFound, LimitExceeded: no such regular file, or too large.
        UnsupportedVolume: no object with labels, a fractional one, or a deflated one.
        CorruptFile: it is damaged.
    """
    dataset = read_object(file)
    if KINDS[dataset.SOPClassUID] == "SEG":
        return SegmentationObject(dataset)
    return StructureSetObject(dataset)
