"""One DICOM file: what it says about its slice of a CT.

Only the tags that geometry and pixel values need are ever read; patient data is not even loaded,
and no error names a file. A header may be damaged in any way: whatever pydicom throws at it becomes
an error of ours, and what it warns about is not shown, as that quotes the header.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.uid import UID, ImplicitVRLittleEndian

from atlas_core.errors import (
    AtlasError,
    CorruptFile,
    LimitExceeded,
    UnsupportedVolume,
)
from atlas_core.geometry import Float3
from atlas_core.regular_files import open_regular

warnings.filterwarnings("ignore", module=r"pydicom\b")
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

PREAMBLE_BYTES = 128

MAX_FILE_BYTES = 1 << 26
"""A slice of 2048×2048 has 8 MiB; a file of more than 64 MiB is no CT slice."""

MAX_MULTIFRAME_BYTES = 1 << 30
"""A whole CT in one file: 2,000 frames of 512×512."""

MAX_SLICE_PIXELS = 1 << 24
"""4096×4096: detectors have at most a few thousand columns. A slice is decoded as a whole."""

MAX_BITS = 32
"""BitsStored, at most; CTs have 12 or 16."""

MAX_FRAMES = 1 << 13
"""Of one file. A stack of more slices than that is no CT."""

EXPORT_AGAIN = "export the series again with all its attributes"

_TAGS = (
    "SeriesInstanceUID", "Modality", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel",
    "ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "RescaleSlope",
    "RescaleIntercept", "RescaleType", "BitsStored", "PixelRepresentation", "SOPClassUID",
    "ImageType", "StudyInstanceUID", "FrameOfReferenceUID", "InstanceNumber", "AcquisitionNumber",
    "TemporalPositionIndex", "AcquisitionTime", "SeriesTime", "ImagesInAcquisition",
    "SOPInstanceUID", "NumberOfSeriesRelatedInstances", "NumberOfSlices",
)  # fmt: skip

_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")

_OF_FRAMES = (
    "PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
)  # fmt: skip
"""Functional groups that say what a plain slice says by itself."""


@dataclass(frozen=True)
class DicomSlice:
    """What a file says about a slice. Lengths in mm, coordinates in DICOM's LPS.

    Attributes:
        frame: which frame of the file it is; None: the file has but one.
    """

    file: Path
    position: Float3
    row: Float3
    column: Float3
    spacing: tuple[float, float]
    size: tuple[int, int]
    slope: float
    intercept: float
    stored_range: tuple[int, int]
    syntax: UID
    frame: int | None = None

    @property
    def normal(self) -> NDArray[np.float64]:
        return np.cross(self.row, self.column)


def looks_like_dicom(file: Path) -> bool:
    """Whether `file` is called or begins like DICOM, with or without a preamble."""
    if file.suffix.lower() in (".dcm", ".dicom", ".ima"):
        return True
    try:
        with open_regular(file) as stream:
            head = stream.read(PREAMBLE_BYTES + 4)
    except (AtlasError, OSError):
        return False
    return head[PREAMBLE_BYTES:] == b"DICM" or begins_with_an_element(head)


def begins_with_an_element(head: bytes) -> bool:
    """Whether the first element stands right at the beginning: of group 2 or 8, little-endian."""
    if len(head) < 8 or head[:2] not in (b"\x02\x00", b"\x08\x00") or head[3] != 0:
        return False
    explicit = head[4:6] in (b"UL", b"UI", b"CS", b"OB", b"SH", b"LO", b"DA", b"TM", b"UN")
    return explicit or (head[:2] == b"\x08\x00" and int.from_bytes(head[4:8], "little") <= 64)


def read_tags(file: Path, more: tuple[str, ...] = ()) -> Dataset:
    """The few tags of `_TAGS`, and `more`.

    Raises:
        NotFound: as `open_regular`.
        LimitExceeded: too large to be a slice.
        UnsupportedVolume: deflated as a whole, which would have to be inflated without a bound.
        Exception: whatever pydicom raises on damaged headers.
    """
    with _NotInflated(opened(file, MAX_MULTIFRAME_BYTES).detach()) as stream:
        bare = begins_with_an_element(stream.read(8))
        stream.seek(0)
        return dcmread(stream, stop_before_pixels=True, specific_tags=[*_TAGS, *more], force=bare)


class _NotInflated(BufferedReader):
    """A file that is never read as a whole: pydicom does so only to inflate it, without a bound."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Raises: UnsupportedVolume: `size` is no limit."""
        if size is None or size < 0:
            raise UnsupportedVolume("deflated DICOM is not read", remedy="inflate the series first")
        return super().read(size)


def opened(file: Path, max_bytes: int = MAX_FILE_BYTES) -> BufferedReader:
    """A file that may hold a slice.

    Raises:
        NotFound: as `open_regular`.
        LimitExceeded: more than `max_bytes`.
    """
    stream = open_regular(file)
    size = os.fstat(stream.fileno()).st_size
    if size > max_bytes:
        stream.close()
        raise LimitExceeded(
            "DICOM file is too large for a slice", expected=f"at most {max_bytes} bytes",
            got=size,
        remedy="export the series as single slices")  # fmt: skip
    return stream


def read_slices(file: Path) -> list[DicomSlice]:
    """What a file says about its slice, or about each of its frames (enhanced CT).

    Raises:
        NotFound: as `open_regular`.
        LimitExceeded: the file or the slice is too large, or it has too many frames.
        UnsupportedVolume: no CT slice, or an attribute is missing or malformed.
        CorruptFile: no readable DICOM file.
    """
    try:
        tags = read_tags(file)
        if not _is_multiframe(tags):
            return [_slice(file, tags)]
        tags = read_tags(file, _GROUPS)
        return [
            replace(_slice(file, one), frame=number) for number, one in enumerate(_frames(tags))
        ]
    except AtlasError:
        raise
    except Exception as error:  # pydicom raises what it likes, and may quote the header
        raise _unreadable(error) from None


def _is_multiframe(tags: Dataset) -> bool:
    return bool(_value(tags, "NumberOfFrames")) and _whole(tags, "NumberOfFrames", 1, 1 << 31) > 1


def _frames(tags: Dataset) -> Iterator[Dataset]:
    """Each frame as the data set of a plain slice.

    Raises:
        LimitExceeded: too many frames.
        UnsupportedVolume: not as many descriptions as frames, as in files that are not enhanced.
    """
    count = _whole(tags, "NumberOfFrames", 1, 1 << 31)
    if count > MAX_FRAMES:
        raise LimitExceeded(
            "too many frames",
            expected=f"at most {MAX_FRAMES}",
            got=count,
            remedy="export it as several series",
        )
    shared, frames = (list(_value(tags, name) or ()) for name in _GROUPS)
    if len(frames) != count:
        raise UnsupportedVolume(
            "multi-frame CT does not say where its frames lie",
            expected=f"{count} functional groups",
            got=len(frames),
            remedy="export it as enhanced CT, or as single slices",
        )
    for own in frames:
        plain = Dataset()
        plain.update(tags)  # `Dataset(tags)` would share its elements
        plain.file_meta = tags.file_meta
        del plain.NumberOfFrames
        for group in (*shared[:1], own):
            for name in _OF_FRAMES:
                for item in list(group.get(name) or ())[:1]:
                    plain.update(item)
        yield plain


def slice_of(dataset: Dataset, file: Path = Path()) -> DicomSlice:
    """What a data set in memory says about its slice; it need not have pixels.

    Args:
        file: that it was read from.

    Raises:
        LimitExceeded, UnsupportedVolume, CorruptFile: as `read_slices`.
    """
    try:
        return _slice(file, dataset)
    except AtlasError:
        raise
    except Exception as error:  # as above
        raise _unreadable(error) from None


def _unreadable(error: Exception) -> CorruptFile:
    return CorruptFile(
        "not a readable DICOM file", got=type(error).__name__, remedy="copy the series again"
    )


def _slice(file: Path, tags: Dataset) -> DicomSlice:
    _require_ct(tags)
    bits = _whole(tags, "BitsStored", 1, MAX_BITS)
    signed = bool(_whole(tags, "PixelRepresentation", 0, 1))
    low = -(1 << (bits - 1)) if signed else 0
    orientation = _numbers(tags, "ImageOrientationPatient", 6)
    x, y, z = _numbers(tags, "ImagePositionPatient", 3)
    between_rows, between_columns = _numbers(tags, "PixelSpacing", 2)
    size = (_whole(tags, "Columns", 1, 65535), _whole(tags, "Rows", 1, 65535))
    if size[0] * size[1] > MAX_SLICE_PIXELS:
        raise LimitExceeded(
            "slice is too large",
            expected=f"at most {MAX_SLICE_PIXELS} pixels",
            got=f"{size[0]}×{size[1]}",
            remedy="export the CT in its scanner's own matrix",
        )
    return DicomSlice(
        file,
        position=(x, y, z),
        row=(orientation[0], orientation[1], orientation[2]),
        column=(orientation[3], orientation[4], orientation[5]),
        spacing=(between_columns, between_rows),
        size=size,
        slope=_numbers(tags, "RescaleSlope", 1)[0],
        intercept=_numbers(tags, "RescaleIntercept", 1)[0],
        stored_range=(low, low + (1 << bits) - 1),
        syntax=_syntax(tags),
    )


def _syntax(tags: Dataset) -> UID:
    """How the pixels are coded; without a preamble nothing may say so, and then they are plain."""
    meta = getattr(tags, "file_meta", {})
    syntax = str(meta.get("TransferSyntaxUID", ""))
    return UID(syntax or ImplicitVRLittleEndian)


def _require_ct(tags: Dataset) -> None:
    """A plain CT slice: modality CT, one frame, one sample, Hounsfield units."""
    modality = str(_value(tags, "Modality") or "")
    if modality != "CT":
        raise UnsupportedVolume(
            "series is no CT",
            expected="modality CT",
            got=modality or "none",
            remedy="import the CT series",
        )
    if _value(tags, "NumberOfFrames") and _whole(tags, "NumberOfFrames", 1, 1 << 31) > 1:
        raise UnsupportedVolume(
            "an enhanced (multi-frame) CT stands for a whole series",
            expected="single slices",
            remedy="export it as single slices",
        )
    if _value(tags, "SamplesPerPixel") and _whole(tags, "SamplesPerPixel", 1, 4) != 1:
        raise UnsupportedVolume(
            "pixels are colours",
            expected="one sample a pixel",
            remedy="export the CT itself, no picture of it",
        )
    unit = str(_value(tags, "RescaleType") or "HU")
    if unit not in ("HU", "US"):  # US: unspecified, which older scanners write for HU
        raise UnsupportedVolume(
            "pixel values are no Hounsfield units",
            got=unit,
            remedy="export the series in Hounsfield units",
        )


def _value(tags: Dataset, keyword: str) -> Any:
    """An attribute, or None; values are converted, and found malformed, when they are asked for."""
    try:
        return tags.get(keyword)
    except Exception:  # see the module's docstring
        raise UnsupportedVolume(f"{keyword} is malformed", remedy=EXPORT_AGAIN) from None


def _tag(tags: Dataset, keyword: str) -> Any:
    value = _value(tags, keyword)
    if value is None or value == "":
        raise UnsupportedVolume(f"DICOM slice lacks {keyword}", remedy=EXPORT_AGAIN)
    return value


def _whole(tags: Dataset, keyword: str, low: int, high: int) -> int:
    """A whole number in [low, high]."""
    (number,) = _numbers(tags, keyword, 1)
    if not (number.is_integer() and low <= number <= high):
        raise UnsupportedVolume(
            f"{keyword} is malformed",
            expected=f"a whole number {low}..{high}",
            got=f"{number:g}",
            remedy=EXPORT_AGAIN,
        )
    return int(number)


def _numbers(tags: Dataset, keyword: str, count: int) -> tuple[float, ...]:
    """A finite numeric attribute of `count` values."""
    value = _tag(tags, keyword)
    try:
        numbers = tuple(float(v) for v in ([value] if count == 1 else value))
    except (TypeError, ValueError, OverflowError):
        numbers = ()
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise UnsupportedVolume(
            f"{keyword} is malformed",
            expected=f"{count} finite numbers, with decimal points",
            remedy=EXPORT_AGAIN,
        )
    return numbers
