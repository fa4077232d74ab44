"""Which DICOM files form which CT series: found in a folder, and sorted out by what they say.

A series often holds more than one volume, or less: copies of files, a second pass, scouts, screens
with the dose. What is no slice is left out by rule, and said; two passes become two series.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydicom import Dataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
)

from atlas_core.errors import AtlasError, LimitExceeded, NotFound
from atlas_core.imaging.dicom_pixels import pixel_bytes
from atlas_core.imaging.dicom_slices import (
    MAX_FILE_BYTES,
    DicomSlice,
    looks_like_dicom,
    read_tags,
    slice_of,
)

MAX_FILES: Final = 100_000
"""Files looked at in one folder: hundreds of CTs in one heap."""

PLANES: Final = 1
"""Decimals of direction cosines that tell planes apart: a scout is turned by 90°."""

PLACES: Final = 2
"""Decimals of millimetres that tell positions apart."""

MISSING_MM: Final = 20.0
"""Reconstructions of one scan end within a few slices of each other; this is more."""

PROJECTIONS: Final = frozenset({"MIP", "MINIP", "PROJECTION IMAGE", "AVERAGE", "RENDERED", "VRT"})
REFORMATTED: Final = frozenset(
    {"MPR", "REFORMATTED", "CSA MPR", "CSAPARALLEL", "RESAMPLED", "CURVED"}
)
SCREENS: Final = frozenset({"LOCALIZER", "SCREEN SAVE", "DOSE_INFO", "SCREENSAVE", "PROTOCOL"})
"""Values of ImageType."""

PROMISES: Final = ("ImagesInAcquisition", "NumberOfSeriesRelatedInstances", "NumberOfSlices")
"""Attributes that say of how many images a file is one."""

CTS: Final = frozenset(
    {"", CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage}
)
"""SOP classes of CTs; a file that names none may be one."""


@dataclass(frozen=True)
class DicomSeries:
    """Files that form one volume, if any.

    Attributes:
        uid: SeriesInstanceUID, with a number where it holds several volumes; an identifier to
            choose by, not to log.
        modality: "CT", "MR", "RTSTRUCT" …
        files: in the order of their names.
        left_out: files of the series that are no slice of this volume, and why.
        reason: why the series is no CT; None if it may be one.
        notes: what deserves a look, in sentences.
        frame, study, instances: FrameOfReferenceUID, StudyInstanceUID and SOPInstanceUIDs, if any;
            identifiers too.
        derived: whether its images were made of others (ImageType).
        slices: what those files that hold one slice say about it.
    """

    uid: str
    modality: str
    files: tuple[Path, ...]
    left_out: tuple[tuple[Path, str], ...] = ()
    reason: str | None = None
    notes: tuple[str, ...] = ()
    frame: str | None = None
    study: str | None = None
    instances: frozenset[str] = field(default=frozenset(), repr=False)
    derived: bool = False
    slices: tuple[DicomSlice, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class _File:
    """What sorts a file; what is missing or malformed is None."""

    path: Path
    series: str
    modality: str
    storage: str
    kind: frozenset[str]
    samples: int
    plane: tuple[float, ...] | None
    place: tuple[float, ...] | None
    frame: str
    study: str
    sop: str
    instance: int | None
    passes: tuple[Any, ...]
    promised: int
    slice: DicomSlice | None

    @property
    def scanned_with(self) -> str:
        """What it shares with other series of its scan, as far as it says."""
        return self.frame or self.study


def find_series(
    *folders: Path,
    max_files: int = MAX_FILES,
    on_unreadable: Callable[[Path, str], None] = lambda file, why: None,
) -> tuple[DicomSeries, ...]:
    """The DICOM series below each of `folders`, those with most files first; other files are passed
    over. Derived series are recognised by their source also where that lies in another folder.

    Args:
        on_unreadable: called with files that look like DICOM and cannot be read, and the reason.

    Raises:
        NotFound: no such folder.
        LimitExceeded: more than `max_files` files in one of them.
    """
    files: dict[tuple[Path, str], list[_File]] = {}
    for folder, path in _below(folders, max_files):
        try:
            file = _file(path, read_tags(path))
        except Exception as error:  # pydicom raises what it likes on damaged headers
            if looks_like_dicom(path) and path.name.upper() != "DICOMDIR":
                known = isinstance(error, AtlasError)
                on_unreadable(
                    path, str(error) if known else "not a readable file of a DICOM series"
                )
            continue
        files.setdefault((folder, file.series), []).append(file)
    sources = {
        one.scanned_with
        for found in files.values()
        for one in found
        if one.modality == "CT" and one.storage == CTImageStorage and "ORIGINAL" in one.kind
    }
    series = _with_neighbours(
        [(_Stack.of(found), one) for found in files.values() for one in _sorted_out(found, sources)]
    )
    return tuple(sorted(series, key=lambda one: (-len(one.files), one.uid)))


def _below(folders: Iterable[Path], max_files: int) -> Iterator[tuple[Path, Path]]:
    """Each folder with each of its files."""
    for folder in folders:
        if not folder.is_dir():
            raise NotFound("no such folder of DICOM files", remedy="check the path")
        yield from ((folder, file) for file in _files(folder, max_files))


def _files(folder: Path, max_files: int) -> list[Path]:
    """Regular files below `folder`, sorted; links to folders are not followed."""
    found: list[Path] = []
    waiting = [folder]
    while waiting:
        # Not by recursion: folders are nested as deep as somebody likes.
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry))
                    elif entry.is_file():
                        found.append(Path(entry))
        except OSError:
            continue  # cannot be listed, or its path is too long to be opened
        if len(found) > max_files:
            raise LimitExceeded(
                "folder holds too many files",
                expected=f"at most {max_files}",
                remedy="import its subfolders one by one",
            )
    return sorted(found)


def _file(path: Path, tags: Dataset) -> _File:
    """Raises: whatever pydicom raises on damaged headers, of what every DICOM file has."""
    modality = str(tags.get("Modality", ""))
    uid = str(tags.get("SeriesInstanceUID") or "")
    if not uid and not (modality and tags.get("Rows")):
        raise NotFound("not a readable file of a DICOM series", remedy="copy it again")
    numbers = ("AcquisitionNumber", "TemporalPositionIndex", "AcquisitionTime", "SeriesTime")
    return _File(
        path,
        # Slices without a series, as some anonymizers leave them, form one with their folder.
        series=uid or f"folder {path.parent}",
        modality=modality,
        storage=str(_value(tags, "SOPClassUID", str) or ""),
        kind=frozenset(_value(tags, "ImageType", _words) or ()),
        samples=_value(tags, "SamplesPerPixel", int) or 1,
        plane=_value(tags, "ImageOrientationPatient", lambda v: _rounded(v, PLANES)),
        place=_value(tags, "ImagePositionPatient", lambda v: _rounded(v, PLACES)),
        frame=str(tags.get("FrameOfReferenceUID") or ""),
        study=str(tags.get("StudyInstanceUID") or ""),
        sop=str(_value(tags, "SOPInstanceUID", str) or ""),
        instance=_value(tags, "InstanceNumber", int),
        passes=tuple(_value(tags, name, str) for name in numbers),
        promised=max(_value(tags, name, int) or 0 for name in PROMISES),
        slice=_slice(path, tags) if modality == "CT" else None,
    )


def _slice(path: Path, tags: Dataset) -> DicomSlice | None:
    """None: several frames, or what is wrong is said when the series is read."""
    try:
        return slice_of(tags, path)
    except AtlasError:
        return None


def _value(tags: Dataset, keyword: str, convert: Callable[[Any], Any]) -> Any:
    """An attribute, or None: what a slice needs is checked when it is read."""
    try:
        value = tags.get(keyword)
        return None if value is None or value == "" else convert(value)
    except Exception:  # values are converted, and found malformed, when they are asked for
        return None


def _words(value: Any) -> list[str]:
    words = [value] if isinstance(value, str) else list(value)
    return [str(word).strip().upper() for word in words]


def _rounded(value: Any, decimals: int) -> tuple[float, ...]:
    return tuple(round(float(number), decimals) + 0.0 for number in value)


def _sorted_out(files: list[_File], sources: set[str]) -> list[DicomSeries]:
    """The volumes of one series; `sources`: frames of reference of original CTs."""
    first = files[0]
    whole = DicomSeries(first.series, first.modality, tuple(one.path for one in files))
    if (reason := _no_ct(files, sources)) is not None:
        return [replace(whole, reason=reason)]
    slices, left_out = _slices(files)
    slices, copies = _without_copies(slices)
    passes = _passes(slices)
    found = []
    for number, one_pass in enumerate(passes, 1):
        split = len(passes) > 1
        notes = [f"pass {number} of {len(passes)} in one series"] if split else _missing(files)
        found.append(
            DicomSeries(
                f"{first.series} pass {number}" if split else first.series,
                first.modality,
                tuple(one.path for one in one_pass),
                tuple(left_out + copies) if number == 1 else (),
                notes=tuple(notes),
                frame=first.frame or None,
                study=first.study or None,
                instances=frozenset(one.sop for one in one_pass if one.sop),
                derived=all("DERIVED" in one.kind for one in one_pass),
                slices=tuple(one.slice for one in one_pass if one.slice is not None),
            )
        )
    return found


@dataclass(frozen=True)
class _Stack:
    """Where a stack of slices lies.

    Attributes:
        frame: of reference, and the plane.
        low, high: first and last place along the normal of its slices (mm).
        gap: between two of them.
    """

    frame: tuple[Any, ...]
    low: float
    high: float
    gap: float

    @classmethod
    def of(cls, files: Sequence[_File]) -> _Stack | None:
        """None: its files do not say."""
        placed = [one for one in files if one.place and len(one.place) == 3 and not _is_screen(one)]
        planes = {one.plane for one in placed}
        plane = planes.pop() if len(planes) == 1 else None
        if plane is None or len(plane) != 6 or not placed[0].scanned_with:
            return None
        normal = np.cross(plane[:3], plane[3:])
        along = sorted({float(np.dot(normal, one.place)) for one in placed if one.place})
        if len(along) < 2:
            return None
        gap = (along[-1] - along[0]) / (len(along) - 1)
        return cls((placed[0].scanned_with, plane), along[0], along[-1], gap)

    def short_of(self, other: _Stack) -> float:
        """How much further `other` goes at one end, where both agree about the other end (mm)."""
        below, above = self.low - other.low, other.high - self.high
        agree = 2 * max(self.gap, other.gap)
        if self.frame != other.frame or min(abs(below), abs(above)) > agree:
            return 0.0
        return max(below, above)


def _with_neighbours(found: Sequence[tuple[_Stack | None, DicomSeries]]) -> list[DicomSeries]:
    """The series, with a note on those that another reconstruction of the same scan exceeds."""
    stacks: dict[tuple[Any, ...], list[_Stack]] = {}  # thousands of series are compared in theirs
    for stack, one in found:
        if stack is not None and one.reason is None:
            stacks.setdefault(stack.frame, []).append(stack)
    series = []
    for stack, one in found:
        beside = stacks.get(stack.frame, ()) if stack is not None else ()
        missing = max((stack.short_of(other) for other in beside), default=0.0) if stack else 0.0
        if one.reason is None and missing > MISSING_MM:
            note = (
                f"another series of this scan goes {missing:.0f} mm further: slices may be missing"
            )
            series.append(replace(one, notes=(*one.notes, note)))
        else:
            series.append(one)
    return series


def _no_ct(files: list[_File], sources: set[str]) -> str | None:
    """Why a whole series is no CT, or None."""
    first = files[0]
    if first.modality != "CT":
        return f"DICOM series of modality {first.modality[:16] or 'unknown'}, not CT"
    if all(_is_screen(one) for one in files):
        return "no CT slices: a scout, or a screen with a report or dose"
    if all("DERIVED" in one.kind for one in files):
        if all(one.kind & PROJECTIONS for one in files):
            return "a projection or rendering (ImageType), no CT"
        other_plane = all(_is_upright(one) for one in files)
        reformatted = other_plane or all(one.kind & REFORMATTED for one in files)
        if reformatted and first.scanned_with in sources:
            return "reformatted (ImageType) from a series that lies beside it"
    return None


def _is_upright(one: _File) -> bool:
    """Whether its plane is coronal or sagittal, in which no CT scans."""
    if one.plane is None or len(one.plane) != 6:
        return False
    return abs(float(np.cross(one.plane[:3], one.plane[3:])[2])) < 0.5


def _is_screen(one: _File) -> bool:
    nowhere = one.place is None and one.storage not in CTS
    return one.samples != 1 or nowhere or bool(one.kind & SCREENS)


def _slices(files: list[_File]) -> tuple[list[_File], list[tuple[Path, str]]]:
    """Slices of the plane that most have; the others, and why."""
    planes = Counter(one.plane for one in files if not _is_screen(one))
    plane = planes.most_common(1)[0][0]
    slices, left_out = [], []
    for one in files:
        if _is_screen(one):
            left_out.append((one.path, "no slice: a scout, or a screen with a report or dose"))
        elif plane is not None and one.plane is not None and one.plane != plane:
            left_out.append((one.path, "no slice of the series: it lies in another plane (scout)"))
        else:
            slices.append(one)
    # Two stacks of different planes are no scout: they stay, and are refused.
    return (slices, left_out) if len(slices) > len(files) / 2 else (files, [])


def _without_copies(slices: list[_File]) -> tuple[list[_File], list[tuple[Path, str]]]:
    """Each slice once: of files at one place with the same pixels, the first."""
    places = Counter(one.place for one in slices)
    kept, copies, seen = [], [], set()
    for one in slices:
        if one.place is not None and places[one.place] > 1:
            key = (one.place, _content(one.path))
            if key in seen:
                copies.append((one.path, "a copy of another slice of the series"))
                continue
            seen.add(key)
        kept.append(one)
    return kept, copies


def _content(path: Path) -> str:
    """Equal for equal pixels; different for every file that cannot be read."""
    try:
        return hashlib.sha256(pixel_bytes(path)).hexdigest()
    except Exception:  # pydicom raises what it likes; reading the slice says what is wrong
        return str(path)


def _passes(slices: list[_File]) -> list[list[_File]]:
    """Slices of each pass over the body; all in one list if nothing tells passes apart."""
    if _once(slices):
        return [slices]
    for index in range(len(slices[0].passes)):
        groups: dict[Any, list[_File]] = {}
        for one in slices:
            groups.setdefault(one.passes[index], []).append(one)
        if len(groups) > 1 and all(len(group) > 1 and _once(group) for group in groups.values()):
            return [groups[key] for key in sorted(groups, key=str)]
    return [slices]


def _once(slices: Iterable[_File]) -> bool:
    places = [one.place for one in slices]
    return len(set(places)) == len(places)


def source_instances(files: Sequence[Path]) -> frozenset[str]:
    """SOPInstanceUIDs that the first, middle and last of `files` name as what they were made of."""
    found: set[str] = set()
    for file in {files[0], files[len(files) // 2], files[-1]}:
        with suppress(Exception):  # pydicom raises what it likes; then it names none
            if file.stat().st_size <= MAX_FILE_BYTES:
                for item in read_tags(file, ("SourceImageSequence",)).SourceImageSequence:
                    found.add(str(item.ReferencedSOPInstanceUID))
    return frozenset(found)


def _missing(files: Sequence[_File]) -> list[str]:
    """What the headers promise and the folder lacks."""
    notes = []
    promised = max(one.promised for one in files)
    if promised > len(files):
        notes.append(f"its headers promise {promised} images, {len(files)} are here")
    numbers = {one.instance for one in files if one.instance is not None}
    if numbers:
        low, high = min(numbers), max(numbers)
        if high - low + 1 > len(numbers) == len(files):
            gaps = high - low + 1 - len(numbers)
            notes.append(f"{gaps} numbers between {low} and {high} are missing among its images")
        elif low > 1 and not notes:
            notes.append(f"its images begin with number {low}: {low - 1} may be missing")
    return notes
