"""DICOM CT series → volumes: files of one series in, Hounsfield units on a RAS+ grid out.

Only the tags that geometry and pixel values need are ever read; patient data is not even loaded,
and no error names a file. A series becomes a volume only if its slices are one regular grid: what
would have to be guessed or resampled (uneven gaps, gantry tilt, two slices at one position, mixed
sizes or orientations) is refused with the reason and the numbers.

pydicom does the parsing and decoding. The geometry is ours: highdicom's reader of series covers the
same ground, but asks for all data sets in memory, does not say what is wrong in terms a user can
act on, and brings three more compiled dependencies for these eighty lines.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.pixels import pixel_array
from pydicom.uid import UID

from atlas_core.errors import CorruptFile, LimitExceeded, NotFound, UnsupportedVolume
from atlas_core.geometry import Float3, VolumeGeometry
from atlas_core.imaging.nifti_reader import MAX_VOXELS
from atlas_core.imaging.volume import Volume

MAX_FILES = 10_000
"""Files looked at in one folder: four whole-body CTs at 0.5 mm."""

MAX_FILE_BYTES = 1 << 26
"""A slice of 2048×2048 has 8 MiB; a file of more than 64 MiB is no CT slice."""

ANGLE_TOLERANCE = 1e-3
"""Direction cosines may differ by this between slices (0.06°): they are written with few
decimals."""

SPACING_TOLERANCE = 1e-3
"""Share by which pixel spacings of one series may differ: rounding of decimal strings."""

POSITION_TOLERANCE_MM = 0.1
"""Slices may lie this far off a regular grid: positions are often rounded to 0.1 mm…"""

POSITION_TOLERANCE = 0.1
"""… but by no more than this share of the gap; a missing slice moves others by half a gap."""

TILT_TOLERANCE_PIXELS = 0.5
"""A stack whose last slice is shifted in its own plane against the first by less than half a pixel
is straight; gantry tilt shifts by many."""

_TAGS = (
    "SeriesInstanceUID", "Modality", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel",
    "ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "RescaleSlope",
    "RescaleIntercept", "RescaleType", "BitsStored", "PixelRepresentation",
)  # fmt: skip


@dataclass(frozen=True)
class DicomSeries:
    """Files that share one SeriesInstanceUID.

    Attributes:
        uid: the SeriesInstanceUID; an identifier to choose by, not to log.
        modality: "CT", "MR", "RTSTRUCT" …
        files: in the order of their names.
    """

    uid: str
    modality: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class _Slice:
    """What one file says about its slice. Lengths in mm, coordinates in DICOM's LPS."""

    file: Path
    position: Float3
    row: Float3
    column: Float3
    spacing: tuple[float, float]
    size: tuple[int, int]
    slope: float
    intercept: float
    stored_range: tuple[int, int]

    @property
    def normal(self) -> NDArray[np.float64]:
        return np.cross(self.row, self.column)


def find_series(folder: Path, *, max_files: int = MAX_FILES) -> tuple[DicomSeries, ...]:
    """The DICOM series below `folder`, those with most files first; other files are passed over.

    Raises:
        NotFound: no such folder.
        LimitExceeded: more than `max_files` files.
    """
    if not folder.is_dir():
        raise NotFound("no such folder of DICOM files")
    files: dict[str, list[Path]] = {}
    modalities: dict[str, str] = {}
    for file in _files(folder, max_files):
        tags = _tags_or_none(file)
        if tags is None or "SeriesInstanceUID" not in tags:
            continue
        uid = str(tags.SeriesInstanceUID)
        files.setdefault(uid, []).append(file)
        modalities.setdefault(uid, str(tags.get("Modality", "")))
    series = (DicomSeries(uid, modalities[uid], tuple(found)) for uid, found in files.items())
    return tuple(sorted(series, key=lambda one: (-len(one.files), one.uid)))


def read_series(files: Sequence[Path], *, max_voxels: int = MAX_VOXELS) -> Volume:
    """Reads the slices of one CT series, in any order, as one volume.

    Returns:
        Voxels ``[i, j, k]`` (columns, rows, slices along the slice normal; Fortran order) in
        Hounsfield units: int16 or int32 where rescaling is by whole numbers, float32 otherwise.
        Padding outside the field of view is kept as it is. Spacing between slices comes from their
        positions, never from SliceThickness.

    Raises:
        NotFound: no file, or one that cannot be opened.
        UnsupportedVolume: not one regular grid of CT slices; says why.
        CorruptFile: a file or its pixel data cannot be read to the end.
        LimitExceeded: too many voxels, or a file too large.
    """
    if not files:
        raise NotFound("no DICOM files to read")
    slices = [_read_slice(file) for file in files]
    _require_uniform(slices)
    slices.sort(key=lambda one: float(np.dot(one.normal, one.position)))
    gap = _gap_mm(slices)
    geometry = _geometry(slices, gap)
    if geometry.voxels > max_voxels:
        raise LimitExceeded(
            "series is too large", expected=f"at most {max_voxels} voxels", got=geometry.voxels
        )
    return Volume(_decode(slices), geometry)


def _files(folder: Path, max_files: int) -> list[Path]:
    found: list[Path] = []
    for file in folder.rglob("*"):
        if file.is_file():
            found.append(file)
        if len(found) > max_files:
            raise LimitExceeded(
                "folder holds too many files",
                expected=f"at most {max_files}",
                remedy="import its subfolders one by one",
            )
    return sorted(found)


def _tags_or_none(file: Path) -> Dataset | None:
    """The few tags of `_TAGS`, or None if `file` is no DICOM file (or too large to be a slice)."""
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            return None
        return dcmread(file, stop_before_pixels=True, specific_tags=list(_TAGS))
    except (InvalidDicomError, OSError, EOFError, ValueError, NotImplementedError):
        return None


def _read_slice(file: Path) -> _Slice:
    try:
        size = file.stat().st_size
    except OSError as error:
        raise NotFound("DICOM file cannot be opened", got=error.strerror) from None
    if size > MAX_FILE_BYTES:
        raise LimitExceeded(
            "DICOM file is too large for a slice", expected=f"at most {MAX_FILE_BYTES} bytes",
            got=size,
        )  # fmt: skip
    tags = _tags_or_none(file)
    if tags is None:
        raise CorruptFile("not a readable DICOM file", remedy="copy the series again")
    _require_ct(tags)
    bits, signed = int(_tag(tags, "BitsStored")), bool(_tag(tags, "PixelRepresentation"))
    low = -(1 << (bits - 1)) if signed else 0
    orientation = _numbers(tags, "ImageOrientationPatient", 6)
    x, y, z = _numbers(tags, "ImagePositionPatient", 3)
    between_rows, between_columns = _numbers(tags, "PixelSpacing", 2)
    return _Slice(
        file,
        position=(x, y, z),
        row=(orientation[0], orientation[1], orientation[2]),
        column=(orientation[3], orientation[4], orientation[5]),
        spacing=(between_columns, between_rows),
        size=(int(_tag(tags, "Columns")), int(_tag(tags, "Rows"))),
        slope=_numbers(tags, "RescaleSlope", 1)[0],
        intercept=_numbers(tags, "RescaleIntercept", 1)[0],
        stored_range=(low, low + (1 << bits) - 1),
    )


def _require_ct(tags: Dataset) -> None:
    """A plain CT slice: modality CT, one frame, one sample, Hounsfield units."""
    modality = str(tags.get("Modality", ""))
    if modality != "CT":
        raise UnsupportedVolume("series is no CT", expected="modality CT", got=modality or "none")
    if int(tags.get("NumberOfFrames") or 1) > 1:
        raise UnsupportedVolume(
            "enhanced (multi-frame) CT is not read",
            remedy="convert it to NIfTI or to single-frame CT first",
        )
    if int(tags.get("SamplesPerPixel") or 1) != 1:
        raise UnsupportedVolume("pixels are colours", expected="one sample a pixel")
    unit = str(tags.get("RescaleType") or "HU")
    if unit not in ("HU", "US"):  # US: unspecified, which older scanners write for HU
        raise UnsupportedVolume("pixel values are no Hounsfield units", got=unit)


def _tag(tags: Dataset, keyword: str) -> Any:
    value = tags.get(keyword)
    if value is None or value == "":
        raise UnsupportedVolume(
            f"DICOM slice lacks {keyword}", remedy="export the series again with all its attributes"
        )
    return value


def _numbers(tags: Dataset, keyword: str, count: int) -> tuple[float, ...]:
    """A finite numeric attribute of `count` values."""
    value = _tag(tags, keyword)
    try:
        numbers = tuple(float(v) for v in ([value] if count == 1 else value))
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise UnsupportedVolume(f"{keyword} is malformed", expected=f"{count} finite numbers")
    return numbers


def _require_uniform(slices: Sequence[_Slice]) -> None:
    """One size, one pixel spacing, one orthogonal orientation."""
    first = slices[0]
    axes = np.array([first.row, first.column])
    if not np.allclose(axes @ axes.T, np.eye(2), atol=ANGLE_TOLERANCE):
        raise UnsupportedVolume("ImageOrientationPatient is no pair of orthogonal unit vectors")
    rules = (
        ("sizes", lambda s: s.size, 0.0, 0.0),
        ("pixel spacings", lambda s: s.spacing, 0.0, SPACING_TOLERANCE),
        ("orientations", lambda s: (*s.row, *s.column), ANGLE_TOLERANCE, 0.0),
    )
    for what, value_of, absolute, relative in rules:
        values = np.array([value_of(one) for one in slices], dtype=np.float64)
        other = ~np.isclose(values, values[0], atol=absolute, rtol=relative).all(axis=1)
        if other.any():
            raise UnsupportedVolume(
                f"slices of one series have different {what}",
                got=f"{int(other.sum())} of {len(slices)} differ from the first",
                remedy="export each acquisition as a series of its own",
            )


def _gap_mm(slices: Sequence[_Slice]) -> float:
    """Distance between slices sorted along their normal, the same everywhere."""
    if len(slices) < 2:
        raise UnsupportedVolume("a single slice is no volume", expected="at least two slices")
    positions = np.array([one.position for one in slices])
    normal = slices[0].normal
    along = positions @ normal
    gaps = np.diff(along)
    gap = float(along[-1] - along[0]) / (len(slices) - 1)
    tolerance = min(POSITION_TOLERANCE_MM, POSITION_TOLERANCE * gap)
    twice = int(np.count_nonzero(gaps <= tolerance))
    if twice:
        raise UnsupportedVolume(
            f"{twice} slices lie at the position of another",
            remedy="export each phase or reconstruction as a series of its own",
        )
    if np.abs(along - (along[0] + gap * np.arange(len(along)))).max() > tolerance:
        raise UnsupportedVolume(
            "gaps between slices are uneven",
            expected=f"{np.median(gaps):.3g} mm everywhere",
            got=f"{gaps.min():.3g}..{gaps.max():.3g} mm",
            remedy="slices are missing, or the series joins several scans: export it again",
        )
    shift = positions - positions[0] - np.outer(along - along[0], normal)
    if np.linalg.norm(shift, axis=1).max() > TILT_TOLERANCE_PIXELS * min(slices[0].spacing):
        step = positions[-1] - positions[0]
        angle = np.degrees(np.arccos(np.clip(step @ normal / np.linalg.norm(step), -1, 1)))
        raise UnsupportedVolume(
            "slices are sheared against each other (gantry tilt)",
            expected="slices stacked along their normal",
            got=f"{angle:.1f} degrees",
            remedy="resample the series to a straight grid first",
        )
    return gap


def _geometry(slices: Sequence[_Slice], gap: float) -> VolumeGeometry:
    """Grid of the sorted slices; DICOM's LPS becomes RAS by turning x and y."""
    first = slices[0]
    lps = np.eye(4)
    lps[:3, 0] = np.array(first.row) * first.spacing[0]
    lps[:3, 1] = np.array(first.column) * first.spacing[1]
    lps[:3, 2] = first.normal * gap
    lps[:3, 3] = first.position
    return VolumeGeometry.from_array(
        (*first.size, len(slices)), np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps
    )


def _decode(slices: Sequence[_Slice]) -> NDArray[Any]:
    """Hounsfield units ``[i, j, k]`` of sorted slices, several decoded at once."""
    columns, rows = slices[0].size
    volume = np.empty((len(slices), rows, columns), _hu_dtype(slices))

    def decode(k: int) -> None:
        one = slices[k]
        stored = _pixels(one)
        if volume.dtype.kind == "f":
            volume[k] = stored.astype(np.float64) * one.slope + one.intercept
        else:
            volume[k] = stored.astype(np.int64) * int(one.slope) + int(one.intercept)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(decode, range(len(slices))))
    if volume.dtype == np.int32 and _fits(np.int16, [int(volume.min()), int(volume.max())]):
        volume = volume.astype(np.int16)
    return volume.transpose(2, 1, 0)


def _hu_dtype(slices: Sequence[_Slice]) -> type[np.generic]:
    """The narrowest type that holds whatever the stored bits can say."""
    ends = [stored * one.slope + one.intercept for one in slices for stored in one.stored_range]
    if not all(one.slope.is_integer() and one.intercept.is_integer() for one in slices):
        return np.float32
    return next((t for t in (np.int16, np.int32) if _fits(t, ends)), np.float32)


def _fits(dtype: type[np.integer[Any]], values: Iterable[float]) -> bool:
    bounds = np.iinfo(dtype)
    return all(bounds.min <= value <= bounds.max for value in values)


def _pixels(one: _Slice) -> NDArray[Any]:
    """Stored numbers of one slice, ``[row, column]``."""
    try:
        stored: NDArray[Any] = pixel_array(one.file, raw=True)
    except NotImplementedError:
        raise UnsupportedVolume(
            "no decoder for the compression of a slice", got=_syntax(one.file)
        ) from None
    # Decoders of third parties raise what they like on damaged data; what it says may name the
    # file.
    except Exception as error:
        raise CorruptFile(
            "pixel data of a slice cannot be decoded",
            got=f"{_syntax(one.file)}: {type(error).__name__}",
            remedy="copy the series again, or decompress it with another tool",
        ) from None
    columns, rows = one.size
    if stored.shape != (rows, columns):
        raise CorruptFile(
            "pixel data of a slice has another size than its header",
            expected=(rows, columns),
            got=stored.shape,
        )
    return stored


def _syntax(file: Path) -> str:
    """Name of the transfer syntax, for the message."""
    meta = dcmread(file, stop_before_pixels=True, specific_tags=[]).file_meta
    return UID(str(meta.get("TransferSyntaxUID", ""))).name or "unknown compression"
