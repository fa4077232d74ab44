"""DICOM objects that hold labels, read: segmentations and structure sets, segment by segment.

An object comes from anywhere: its header is not believed further than its voxels can be placed. A
segment is put on the grid of its CT by its own geometry, or the object is refused.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.filereader import read_file_meta_info
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    RTStructureSetStorage,
    SegmentationStorage,
)

from atlas_core.errors import (
    AtlasError,
    CorruptFile,
    GridMismatch,
    LimitExceeded,
    UnsupportedVolume,
)
from atlas_core.geometry import VolumeGeometry
from atlas_core.regular_files import open_regular

MAX_OBJECT_BYTES: Final = 1 << 30
"""A hundred organs on six hundred slices of 512×512 have some hundred MiB."""

LABEL_MAP_STORAGE: Final = "1.2.840.10008.5.1.4.1.1.66.7"
"""Label Map Segmentation Storage, which pydicom's dictionary does not have yet."""

KINDS: Final = {
    SegmentationStorage: "SEG",
    LABEL_MAP_STORAGE: "SEG",
    RTStructureSetStorage: "RTSTRUCT",
}

_REFERENCES: Final = [
    "SOPClassUID", "FrameOfReferenceUID", "ReferencedSeriesSequence",
    "ReferencedFrameOfReferenceSequence", "SharedFunctionalGroupsSequence",
]  # fmt: skip


@dataclass(frozen=True)
class References:
    """What an object says it lies on.

    Attributes:
        series: SeriesInstanceUIDs; empty where it names none.
        frames: FrameOfReferenceUIDs; as above.
    """

    series: frozenset[str]
    frames: frozenset[str]


@dataclass(frozen=True)
class Segment:
    """One structure of an object.

    Attributes:
        number: by which the object calls it.
        name: as people see it.
        concept: coded type with its modifiers; None where the object has none.
    """

    number: int
    name: str
    concept: Dataset | None


class LabelObject(ABC):
    """An open object: its segments, and where each of them lies.

    Attributes:
        segments: in the order of the object.
        references: what it lies on.
    """

    segments: tuple[Segment, ...]
    references: References

    @abstractmethod
    def mask(self, segment: Segment, grid: VolumeGeometry) -> NDArray[np.bool_]:
        """`segment` as a mask ``[i, j, k]`` on `grid`.

        Raises:
            GridMismatch: it lies outside, or between the voxels.
            CorruptFile: its content cannot be read.
        """

    def require_frame(self, frame: str | None) -> None:
        """Refuse an object of another frame of reference than its CT's.

        Args:
            frame: FrameOfReferenceUID of the CT; None where it has none.

        Raises:
            GridMismatch: both say it, and they differ.
        """
        if frame and self.references.frames and frame not in self.references.frames:
            raise GridMismatch(
                "label and CT have different frames of reference",
                expected="one FrameOfReferenceUID",
                got="another: they were made in different positions of the patient, or one was "
                "given new identifiers",
                remedy="take the label that was made on this series",
            )


def references_of(file: Path) -> References:
    """What the object in `file` refers to.

    Raises:
        NotFound, LimitExceeded, UnsupportedVolume, CorruptFile: as `read_object`.
    """
    return references_in(read_object(file, _REFERENCES))


def references_in(dataset: Dataset) -> References:
    """What the data set of an object refers to."""
    series, frames = set(), {str(dataset.get("FrameOfReferenceUID") or "")}
    for item in dataset.get("ReferencedSeriesSequence") or ():
        series.add(str(item.get("SeriesInstanceUID") or ""))
    for frame in dataset.get("ReferencedFrameOfReferenceSequence") or ():
        frames.add(str(frame.get("FrameOfReferenceUID") or ""))
        for study in frame.get("RTReferencedStudySequence") or ():
            for item in study.get("RTReferencedSeriesSequence") or ():
                series.add(str(item.get("SeriesInstanceUID") or ""))
    return References(frozenset(series - {""}), frozenset(frames - {""}))


def read_object(file: Path, tags: list[str] | None = None) -> Dataset:
    """The data set of a label object, or some attributes of it.

    Raises:
        NotFound: as `open_regular`.
        LimitExceeded: too large.
        UnsupportedVolume: another kind of object, or deflated as a whole, which would have to be
            inflated without a bound.
        CorruptFile: no readable DICOM file.
    """
    try:
        with open_regular(file) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > MAX_OBJECT_BYTES:
                raise LimitExceeded(
                    "DICOM object is too large",
                    expected=f"at most {MAX_OBJECT_BYTES} bytes",
                    got=size,
                    remedy="write it as several objects of fewer segments",
                )
            bare = stream.read(132)[128:] != b"DICM"
            stream.seek(0)
            if not bare:
                syntax = read_file_meta_info(file).get("TransferSyntaxUID")
                if syntax == DeflatedExplicitVRLittleEndian:
                    raise UnsupportedVolume(
                        "deflated DICOM is not read", remedy="inflate the object first"
                    )
            dataset = dcmread(stream, specific_tags=tags, force=bare)
            kind = UID(str(dataset.get("SOPClassUID") or ""))
    except AtlasError:
        raise
    except Exception as error:  # pydicom raises what it likes, and may quote the header
        raise unreadable(error) from None
    if kind not in KINDS:
        raise UnsupportedVolume(
            "no object with labels",
            expected="DICOM SEG or RTSTRUCT",
            got=kind.name,
            remedy="pair the CT with a DICOM SEG or RTSTRUCT",
        )
    return dataset


def unreadable(error: Exception) -> CorruptFile:
    """What to say of an object that is damaged, without quoting it."""
    return CorruptFile(
        "not a readable DICOM object with labels",
        got=type(error).__name__,
        remedy="export it again",
    )
