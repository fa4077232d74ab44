"""Finds the CTs in a folder and the label files that belong to them, without opening a volume.

Recognised, at any depth and in any mixture:

    case folders    ct.nii.gz with segmentations/<organ>.nii.gz and/or combined_labels.nii.gz
                    (AbdomenAtlas, TotalSegmentator); imaging.nii.gz with segmentation.nii.gz (KiTS)
    nnU-Net raw     imagesTr/<case>_0000.nii.gz with labelsTr/<case>.nii.gz and dataset.json; also
                    the Decathlon's form without _0000, and imagesTs, imagesVa …
    DICOM           every series below a folder that holds DICOM files
    loose NIfTIs    paired with their labels where the names say so (volume-3 with segmentation-3,
                    img0003 with label0003, x_0000 with x, images/x with labels/x)

A loose file may turn out to be a label map when it is read; see `Candidate.certain`. Pipes, sockets
and devices are never opened; symbolic links are followed, into each folder once.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from atlas_core.errors import LimitExceeded, NotFound, printable
from atlas_core.imaging.dicom_reader import DicomSeries, find_series, looks_like_dicom

NIFTI: Final = re.compile(r"(?P<stem>.+)\.nii(\.gz)?", re.IGNORECASE)

CT_STEMS: Final = ("ct", "imaging")
"""Names of the CT in a case folder: AbdomenAtlas and TotalSegmentator, KiTS."""

OUR_LABEL_MAP: Final = "combined_labels"

LABEL_MAP_STEMS: Final = (OUR_LABEL_MAP, "segmentation", "aggregated_MAJ_seg")
"""Names of the label map in a case folder: AbdomenAtlas, KiTS19, KiTS21 and later."""

MASKS_FOLDER: Final = "segmentations"

NNUNET_IMAGES: Final = re.compile(r"images(Tr|Ts|Va|Val)", re.IGNORECASE)

LABELS_FOLDER: Final = re.compile(
    r"(labels?|masks?|segmentations?|gt|groundtruth)\w*", re.IGNORECASE
)

PAIRS: Final = (
    (re.compile(r"volume-(\d+)"), ("segmentation-{0}", "labels-{0}")),  # LiTS, CT-ORG
    (re.compile(r"img(\d+)"), ("label{0}",)),  # BTCV
    (re.compile(r"pancreas_?(\d+)", re.IGNORECASE), ("label{0}",)),  # Pancreas-CT
    (re.compile(r"(.+)_0000"), ("{0}",)),  # AbdomenCT-1K, FLARE
)
"""Name of a CT → names of its label map, in the same folder or in a folder of labels beside it."""

OTHER_FORMATS: Final = frozenset({".nrrd", ".nhdr", ".mha", ".mhd", ".hdr", ".img", ".mgz", ".mgh"})

NOT_DICOM: Final = frozenset({
    ".csv", ".gz", ".html", ".jpeg", ".jpg", ".json", ".md", ".nii", ".pdf", ".png", ".py", ".tar",
    ".tsv", ".txt", ".xlsx", ".xml", ".xz", ".yaml", ".yml", ".zip",
})  # fmt: skip
"""Suffixes that are not even opened in search of DICOM files, which often have none."""


@dataclass(frozen=True)
class Candidate:
    """Files that may form a case.

    Attributes:
        name: of the CT, relative to what the user passed, printable.
        ct: one NIfTI file, or the files of one DICOM series.
        masks: file name without suffix → mask of one structure.
        label_map: all structures in one file.
        label_names: nnU-Net's dataset.json, which says what the label map's values mean.
        our_ids: the label map has the name that we use, so its values are our label ids.
        certain: the layout shows that this is a CT; otherwise it is a loose file.
    """

    name: str
    ct: Path | tuple[Path, ...]
    masks: Mapping[str, Path] = field(default_factory=dict)
    label_map: Path | None = None
    label_names: Path | None = None
    our_ids: bool = False
    certain: bool = True


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
    """The result of a search, in the order of the names."""

    candidates: tuple[Candidate, ...]
    set_aside: tuple[SetAside, ...]


def discover(path: Path) -> Discovery:
    """Looks for CTs at `path`: a NIfTI file, or a folder.

    Raises:
        NotFound: nothing is there.
    """
    name = printable(path.name)
    if path.is_file() and _is_dicom(path):
        return Discovery((), (SetAside(name, "one DICOM file is no volume: pass its folder"),))
    if path.is_file():
        return Discovery((Candidate(name, path),), ())
    if not path.is_dir():
        raise NotFound("no such file or folder", case=path.name)
    search = _Search(path)
    search.run()
    return search.result()


def shown_name(path: Path, root: Path) -> str:
    """`path` relative to `root`, which the user passed, printable."""
    return printable(path.name if path == root else path.relative_to(root).as_posix())


class _Search:
    """One walk through a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._candidates: list[Candidate] = []
        self._set_aside: dict[str, str] = {}
        self._labels: set[Path] = set()  # loose files that are the label map of another
        self._seen: set[tuple[int, int]] = set()

    def result(self) -> Discovery:
        candidates = [c for c in self._candidates if c.ct not in self._labels]
        return Discovery(
            tuple(sorted(candidates, key=lambda c: c.name)),
            tuple(SetAside(name, reason) for name, reason in sorted(self._set_aside.items())),
        )

    def run(self) -> None:
        """Everything below the root."""
        # Not by recursion: folders are nested as deep as somebody likes.
        waiting = [(self._root, False)]
        while waiting:
            folder, dicom_above = waiting.pop()
            try:
                below, dicom = self._folder(folder, dicom_above=dicom_above)
            # Whatever one folder brings about, the others are searched.
            except Exception as error:
                self._put_aside(folder, f"cannot be searched: {type(error).__name__}")
                continue
            waiting += [(inner, dicom) for inner in below]

    def _folder(self, folder: Path, *, dicom_above: bool) -> tuple[list[Path], bool]:
        """Take what lies in `folder`; `dicom_above`: its DICOM files were found already.

        Returns:
            Folders to be searched next, and whether their DICOM files are found by then.
        """
        entries = self._list(folder)
        if entries is None or self._was_here(folder):
            return [], dicom_above
        files, folders = entries
        if self._case_folder(files, folders):
            self._put_aside_volumes(folders)
            return [], dicom_above
        for images, labels in _nnunet_folders(folders):
            self._nnunet(folder, images, labels)
            folders = [inner for inner in folders if inner not in (images, labels)]
        dicom = not dicom_above and any(map(_is_dicom, files))
        if dicom:
            self._dicom(folder)
        self._loose(folder, files)
        return folders, dicom_above or dicom

    def _was_here(self, folder: Path) -> bool:
        """Whether a symbolic link led to this folder before."""
        status = folder.stat()
        key = (status.st_dev, status.st_ino)
        seen = key in self._seen
        self._seen.add(key)
        return seen

    def _list(self, folder: Path) -> tuple[list[Path], list[Path]] | None:
        """Files and folders in `folder`, sorted, without hidden ones; None if it cannot be opened.

        What is neither is put aside.
        """
        files: list[Path] = []
        folders: list[Path] = []
        try:
            names = sorted(name for name in os.listdir(folder) if not name.startswith("."))  # noqa: PTH208
        except OSError as error:
            self._put_aside(folder, f"cannot be opened: {error.strerror}")
            return None
        for path in (folder / name for name in names):
            try:
                mode = path.stat().st_mode
            except OSError as error:
                what = (
                    "symbolic link that leads nowhere" if path.is_symlink() else "cannot be opened"
                )
                self._put_aside(path, f"{what}: {error.strerror}")
                continue
            if stat.S_ISDIR(mode):
                folders.append(path)
            elif stat.S_ISREG(mode):
                files.append(path)
            else:
                self._put_aside(path, "a pipe, socket or device; these are not read")
        return files, folders

    def _name(self, path: Path) -> str:
        return shown_name(path, self._root)

    def _case_folder(self, files: list[Path], folders: list[Path]) -> bool:
        """Handle a case folder, or masks without a CT; False if it is neither."""
        masks = next((inner for inner in folders if inner.name == MASKS_FOLDER), None)
        volumes = _by_stem(files)
        ct = _ct_of_case(volumes, beside_masks=masks is not None)
        if ct is not None:
            self._case(volumes, ct, masks)
            return True
        if masks is not None and not volumes and self._volumes(masks):
            self._put_aside(masks, "masks without a CT: no ct.nii.gz beside them")
            return True
        return False

    def _case(self, volumes: Mapping[str, Path], ct: Path, masks: Path | None) -> None:
        label_map = next((volumes[stem] for stem in LABEL_MAP_STEMS if stem in volumes), None)
        self._candidates.append(
            Candidate(
                self._name(ct),
                ct,
                masks=self._volumes(masks) if masks is not None else {},
                label_map=label_map,
                our_ids=label_map is not None and _stem(label_map) == OUR_LABEL_MAP,
            )
        )
        for other in sorted(set(volumes.values()) - {ct, label_map}):
            self._put_aside(other, "lies in a case folder but is no part of the case")

    def _nnunet(self, folder: Path, images: Path, labels: Path | None) -> None:
        names = folder / "dataset.json"
        label_files = self._volumes(labels) if labels is not None else {}
        for stem, ct, channels in _first_channels(self._volumes(images), label_files):
            if channels > 1:
                self._put_aside(ct, f"has {channels} channels; a CT has one")
                continue
            self._candidates.append(
                Candidate(
                    self._name(ct),
                    ct,
                    label_map=label_files.get(stem),
                    label_names=names if names.is_file() else None,
                )
            )

    def _volumes(self, folder: Path) -> dict[str, Path]:
        """The NIfTI files in `folder`; what else is called so is put aside."""
        files, folders = self._list(folder) or ([], [])
        self._put_aside_volumes(folders)
        return _by_stem(files)

    def _put_aside_volumes(self, folders: list[Path]) -> None:
        for path in _by_stem(folders).values():
            self._put_aside(path, "a folder that is called like a NIfTI file")

    def _dicom(self, folder: Path) -> None:
        try:
            found = find_series(folder, on_unreadable=self._put_aside)
        except LimitExceeded as error:
            self._put_aside(folder, str(error))
            return
        homes = [_home(series) for series in found]
        for series, home in zip(found, homes, strict=True):
            name = self._name(home)
            if homes.count(home) > 1:
                name += printable(f" (series …{series.uid[-8:]}, {len(series.files)} files)")
            if series.modality == "CT":
                self._candidates.append(Candidate(name, series.files))
            else:
                reason = f"DICOM series of modality {series.modality[:16] or 'unknown'}, not CT"
                self._set_aside[name] = printable(reason)

    def _loose(self, folder: Path, files: list[Path]) -> None:
        beside = [] if folder == self._root else _label_folders(folder)
        for file in files:
            if file.suffix.lower() in OTHER_FORMATS:
                self._put_aside(file, f"{file.suffix} files are not read; convert it to NIfTI")
        for stem, file in _by_stem(files).items():
            label = _label_beside(folder, beside, stem)
            if label is not None:
                self._labels.add(label)
            self._candidates.append(
                Candidate(self._name(file), file, label_map=label, certain=label is not None)
            )

    def _put_aside(self, path: Path, reason: str) -> None:
        self._set_aside[self._name(path)] = reason


def _stem(file: Path) -> str | None:
    """Name without ``.nii`` or ``.nii.gz``; None for other files and hidden ones."""
    match = NIFTI.fullmatch(file.name)
    return None if match is None or file.name.startswith(".") else match["stem"]


def _by_stem(files: Iterable[Path]) -> dict[str, Path]:
    """NIfTI files by name without suffix, sorted."""
    return {stem: file for file in sorted(files) if (stem := _stem(file)) is not None}


def _ct_of_case(volumes: Mapping[str, Path], *, beside_masks: bool) -> Path | None:
    """The CT of a case folder that holds `volumes`, or None if it is no case folder.

    A folder of loose files may hold one called ``ct`` too: beside others, it takes masks or a label
    map to make it a case folder. Beside masks, a single volume of any name is their CT.
    """
    named = next((volumes[stem] for stem in CT_STEMS if stem in volumes), None)
    if len(volumes) == 1:
        return named if named is not None or not beside_masks else next(iter(volumes.values()))
    labelled = beside_masks or any(stem in volumes for stem in LABEL_MAP_STEMS)
    return named if labelled else None


def _nnunet_folders(folders: list[Path]) -> list[tuple[Path, Path | None]]:
    """Folders of images with their folders of labels, of an nnU-Net raw dataset."""
    by_name = {inner.name.lower(): inner for inner in folders}
    return [
        (images, by_name.get(images.name.lower().replace("images", "labels", 1)))
        for images in folders
        if NNUNET_IMAGES.fullmatch(images.name)
    ]


def _first_channels(
    images: Mapping[str, Path], labels: Mapping[str, Path]
) -> Iterator[tuple[str, Path, int]]:
    """Name of each case, file of its first channel, and how many channels it has.

    ``_0000`` is a channel number only where no label bears the whole name: AMOS calls its 507th
    case amos_0507, in both folders.
    """
    for stem, file in images.items():
        match = re.fullmatch(r"(.+)_(\d{4})", stem)
        if match is None or stem in labels or f"{match[1]}_0000" not in images:
            yield stem, file, 1
        elif match[2] == "0000":
            pattern = re.compile(re.escape(match[1]) + r"_\d{4}")
            yield match[1], file, sum(pattern.fullmatch(other) is not None for other in images)


def _home(series: DicomSeries) -> Path:
    """The folder that holds all files of a series."""
    return Path(os.path.commonpath([file.parent for file in series.files]))


def _label_folders(folder: Path) -> list[Path]:
    """Folders of labels beside `folder`; none beside one of them."""
    if LABELS_FOLDER.fullmatch(folder.name):
        return []
    with contextlib.suppress(OSError):  # `folder` may be read, the one above it not
        return [
            inner
            for inner in sorted(folder.parent.iterdir())
            if inner != folder and LABELS_FOLDER.fullmatch(inner.name) and inner.is_dir()
        ]
    return []


def _label_beside(folder: Path, beside: list[Path], stem: str) -> Path | None:
    """The label map that belongs to a loose CT called `stem` by its name."""
    for pattern, names in PAIRS:
        if (match := pattern.fullmatch(stem)) is not None:
            wanted = [name.format(*match.groups()) for name in names]
            return _first_file([folder, *beside], wanted)
    return _first_file(beside, [stem])


def _first_file(folders: list[Path], stems: list[str]) -> Path | None:
    for folder in folders:
        for stem in stems:
            for suffix in (".nii.gz", ".nii"):
                if (file := folder / f"{stem}{suffix}").is_file():
                    return file
    return None


def _is_dicom(file: Path) -> bool:
    return file.suffix.lower() not in NOT_DICOM and looks_like_dicom(file)
