"""Files that may form a case, and the names of volumes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from atlas_core.errors import printable
from atlas_core.imaging.dicom_reader import DicomSeries

VOLUME: Final = re.compile(
    r"(?P<stem>.+?)(?P<suffix>(\.seg)?\.(nii(\.gz)?|nrrd|nhdr|mha|mhd))", re.IGNORECASE
)


@dataclass(frozen=True)
class Candidate:
    """Files that may form a case.

    Attributes:
        name: of the CT, relative to what the user passed, printable.
        ct: one file, or a DICOM series.
        masks: file name without suffix → mask of one structure.
        label_map: all structures in one file.
        label_names: file that says what the label map's values mean: nnU-Net's dataset.json, a
            table of BIDS, or the label map itself (3D Slicer's segments).
        objects: DICOM SEG and RTSTRUCT, with names and places of their own.
        our_ids: the label map has the name that we use, so its values are our label ids.
        certain: the layout shows that this is a CT; otherwise it is a loose file.
    """

    name: str
    ct: Path | DicomSeries
    masks: Mapping[str, Path] = field(default_factory=dict)
    label_map: Path | None = None
    label_names: Path | None = None
    objects: tuple[Path, ...] = ()
    our_ids: bool = False
    certain: bool = True

    @property
    def ct_files(self) -> tuple[Path, ...]:
        return (self.ct,) if isinstance(self.ct, Path) else self.ct.files

    @property
    def notes(self) -> tuple[str, ...]:
        """What deserves a look, in sentences."""
        return () if isinstance(self.ct, Path) else self.ct.notes

    @property
    def label_files(self) -> tuple[Path, ...]:
        """Masks, label map, what says their meaning, and DICOM objects, each once."""
        more = (self.label_map, self.label_names)
        found = (*self.masks.values(), *(file for file in more if file is not None), *self.objects)
        return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class SetAside:
    """A file or folder that cannot be a case, and why.

    Attributes:
        name: relative to what the user passed, printable.
        reason: one clause.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Discovery:
    """The result of a search, in the order of the names. Every file is in one of the three.

    Attributes:
        candidates: what may form cases.
        set_aside: volumes, and what looks like one, that cannot.
        others: files of other kinds.
    """

    candidates: tuple[Candidate, ...]
    set_aside: tuple[SetAside, ...]
    others: tuple[SetAside, ...] = ()


def shown_name(path: Path, root: Path) -> str:
    """`path` relative to `root`, which the user passed, printable."""
    return printable(path.name if path == root else path.relative_to(root).as_posix())


def stem_of(file: Path) -> str | None:
    """Name of a volume without its suffix; None for other files and hidden ones."""
    match = VOLUME.fullmatch(file.name)
    return None if match is None or file.name.startswith(".") else match["stem"]


def is_segments(file: Path) -> bool:
    """Whether `file` is called as 3D Slicer calls its segmentations, which name their segments."""
    return file.name.lower().endswith(".seg.nrrd")


def by_stem(files: Iterable[Path]) -> dict[str, Path]:
    """Volumes by name without suffix, sorted; of those that share it, the others by whole name."""
    found: dict[str, Path] = {}
    for file in sorted(files):
        if (stem := stem_of(file)) is not None:
            found[stem if stem not in found else file.name] = file
    return found


def named(volumes: Mapping[str, Path], stems: Iterable[str]) -> Path | None:
    """The first of `volumes` that is called as one of `stems`, in capitals or not."""
    lower = {stem.lower(): file for stem, file in reversed(list(volumes.items()))}
    return next((lower[stem.lower()] for stem in stems if stem.lower() in lower), None)
