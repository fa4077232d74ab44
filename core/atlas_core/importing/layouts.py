"""Finds the CTs in a folder and the label files that belong to them, without opening a volume.

Recognised, at any depth and in any mixture, in capitals or not, as NIfTI, NRRD or MetaImage:

    case folders    ct.nii.gz with segmentations/<organ>.nii.gz and/or combined_labels.nii.gz
                    (AbdomenAtlas, TotalSegmentator); imaging.nii.gz with segmentation.nii.gz
                    (KiTS); a CT with 3D Slicer's Segmentation.seg.nrrd
    nnU-Net raw     imagesTr/<case>_0000.nii.gz with labelsTr/<case>.nii.gz and dataset.json; also
                    the Decathlon's form without _0000, imagesTs, imagesVa …, paths in dataset.json
    BIDS            sub-1/…/sub-1_ct.nii.gz with derivatives/…/sub-1_dseg.nii.gz or sub-1_…_mask
    DICOM           every series below a folder that holds DICOM files, with labels as NIfTI, DICOM
                    SEG or RTSTRUCT
    loose volumes   paired with their labels where the names say so (volume-3 with segmentation-3,
                    img0003 with label0003, x_0000 with x, images/x with labels/x)
    a list          whatever a CSV of pairs says, and nothing else

A loose file may turn out to be a label map when it is read; see `Candidate.certain`. Pipes, sockets
and devices are never opened; symbolic links are followed, into each folder once. Every file is
accounted for.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Final

from atlas_core.errors import LimitExceeded, NotFound, printable
from atlas_core.imaging.dicom_reader import find_series, looks_like_dicom
from atlas_core.importing.candidates import (
    Candidate,
    Discovery,
    SetAside,
    by_stem,
    is_segments,
    named,
    shown_name,
    stem_of,
)
from atlas_core.importing.folder_rules import (
    LABEL_MAP_STEMS,
    OUR_LABEL_MAP,
    ct_of_case,
    files_below,
    first_channels,
    home_of,
    label_folders_at,
    nnunet_folders,
)
from atlas_core.importing.label_names import ROOT_NAME
from atlas_core.importing.pairing import (
    Labels,
    Stems,
    bids_key,
    bids_labels,
    label_beside,
    label_folders,
    objects_of_series,
    pairs_of_dataset,
    read_pairs,
)

DERIVATIVES: Final = "derivatives"

MASKS_FOLDER: Final = "segmentations"


RESAMPLED: Final = re.compile(r"(?P<source>.+?)(_Tilt|_Eq)+(_\d+)?", re.IGNORECASE)
"""Beside a series of tilted or uneven slices, dcm2niix writes a copy that is resampled to a
straight grid; only that one has its slices where they were."""

OTHER_FORMATS: Final = frozenset({".hdr", ".img", ".mgz", ".mgh", ".mnc", ".gipl", ".vtk"})

ARCHIVES: Final = frozenset({".zip", ".tar", ".tgz", ".7z", ".rar", ".xz", ".bz2", ".gz"})

NOT_DICOM: Final = frozenset({
    ".csv", ".gz", ".html", ".jpeg", ".jpg", ".json", ".md", ".nii", ".nrrd", ".pdf", ".png", ".py",
    ".tar", ".tsv", ".txt", ".xlsx", ".xml", ".xz", ".yaml", ".yml", ".zip",
})  # fmt: skip
"""Suffixes that are not even opened in search of DICOM files, which often have none."""

UNPAIRED: Final = "a label without its CT: none of its name and none in its folder; see --pairs"
ELSEWHERE: Final = "a CT of its own needs a folder of its own, a label --pairs"


def discover(path: Path, pairs: Path | None = None) -> Discovery:
    """Looks for CTs at `path`: a volume, or a folder.

    Args:
        pairs: a list of CTs and their labels; nothing else is then taken. See `read_pairs`.

    Raises:
        NotFound: nothing is there.
        InvalidInput: a list of pairs that names what is not there.
    """
    name = printable(path.name)
    if path.is_file() and stem_of(path) is None and _is_dicom(path):
        return Discovery((), (SetAside(name, "one DICOM file is no volume: pass its folder"),))
    if path.is_file():
        return Discovery((Candidate(name, path),), ())
    if not path.is_dir():
        raise NotFound("no such file or folder", case=path.name, remedy="check the path")
    search = _Search(path)
    if pairs is None:
        search.run()
    else:
        search.take(read_pairs(pairs, path))
    return search.result("not in the list of pairs" if pairs is not None else None)


@dataclass(frozen=True)
class _Above:
    """What is known of the folders above another.

    Attributes:
        dicom: their DICOM files were found already, with all below.
        names: the nearest dataset.json.
        listed: CT → label, by that.
        derived: labels by the entities of their CT, of the nearest BIDS derivatives.
    """

    dicom: bool = False
    names: Path | None = None
    listed: Mapping[Path, Path] = field(default_factory=dict)
    derived: Mapping[str, Labels] = field(default_factory=dict)


class _Search:
    """One walk through a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._candidates: list[Candidate] = []
        self._set_aside: dict[Path, SetAside] = {}
        self._seen: set[tuple[int, int]] = set()
        self._cases: set[Path] = set()
        self._dicoms: list[Path] = []
        self._stems = cache(self._read_stems)

    def result(self, rest: str | None = None) -> Discovery:
        """What was found; `rest`: why what is left is left."""
        labels = {file for one in self._candidates for file in one.label_files}
        candidates = [c for c in self._candidates if labels.isdisjoint(c.ct_files)]
        used = labels | {file for one in candidates for file in one.ct_files}
        aside = {path: one for path, one in self._set_aside.items() if path not in used}
        others = [
            SetAside(self._name(file), rest or self._other(file))
            for file in files_below(self._root)
            if file not in used and file not in aside
        ]
        return Discovery(
            tuple(sorted(candidates, key=lambda c: c.name)),
            tuple(sorted(aside.values(), key=lambda one: one.name)),
            tuple(others),
        )

    def take(self, pairs: Mapping[Path, Path | None]) -> None:
        """The CTs and labels of a list."""
        for ct, label in pairs.items():
            if ct.is_dir():
                self._dicom([ct], label)
            else:
                self._candidates.append(self._with_map(Candidate(self._name(ct), ct), label))

    def run(self) -> None:
        """Everything below the root."""
        # Not by recursion: folders are nested as deep as somebody likes.
        waiting = [(self._root, _Above())]
        while waiting:
            folder, above = waiting.pop()
            try:
                below, here = self._folder(folder, above)
            # Whatever one folder brings about, the others are searched.
            except Exception as error:
                self._put_aside(folder, f"cannot be searched: {type(error).__name__}")
                continue
            waiting += [(inner, here) for inner in below]
        self._dicom(self._dicoms)

    def _folder(self, folder: Path, above: _Above) -> tuple[list[Path], _Above]:
        """Take what lies in `folder`.

        Returns:
            Folders to be searched next, and what is known of the folders above them by then.
        """
        entries = self._list(folder)
        if entries is None or self._was_here(folder):
            return [], above
        files, folders = entries
        if self._case_folder(folder, files, folders):
            return [], above
        here = self._known(folder, files, folders, above)
        for images, labels in nnunet_folders(folders):
            self._nnunet(folder, images, labels, here)
            folders = [inner for inner in folders if inner not in (images, labels)]
        dicom = not above.dicom and any(map(_is_dicom, files))
        if dicom:
            self._dicoms.append(folder)
        self._loose(folder, files, here)
        return folders, replace(here, dicom=above.dicom or dicom)

    def _known(self, folder: Path, files: list[Path], folders: list[Path], above: _Above) -> _Above:
        """What `folder` says about CTs in it and below, or those above it do."""
        if folder / ROOT_NAME in files:
            above = replace(above, names=folder / ROOT_NAME, listed=pairs_of_dataset(folder))
        if folder / DERIVATIVES in folders:
            above = replace(above, derived=bids_labels(folder / DERIVATIVES))
        # Derivatives of derivatives have their labels beside them, as other files do.
        return replace(above, derived={}) if folder.name == DERIVATIVES else above

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

    def _read_stems(self, folder: Path) -> Stems:
        files, _ = self._list(folder) or ([], [])
        return {stem.lower(): file for stem, file in reversed(list(by_stem(files).items()))}

    def _case_folder(self, folder: Path, files: list[Path], folders: list[Path]) -> bool:
        """Handle a case folder, or put aside masks without a CT; False if it is no case folder."""
        masks = next((inner for inner in folders if inner.name.lower() == MASKS_FOLDER), None)
        volumes = by_stem(files)
        ct = ct_of_case(volumes, beside_masks=masks is not None)
        if ct is not None:
            self._case(volumes, ct, masks)
            self._put_aside_volumes(folders)
            self._cases.add(folder)
            beside = f"{ct.name} makes its folder one case, of which this is no part: {ELSEWHERE}"
            labels = set(self._candidates[-1].label_files)
            for file in files_below(folder):
                if stem_of(file) is not None and file not in labels:
                    self._put_aside(file, beside)
            return True
        inside = self._volumes(masks) if masks is not None and not volumes else {}
        for mask in inside.values():
            self._put_aside(mask, "a mask without a CT: no ct.nii.gz beside its folder")
        return False

    def _case(self, volumes: Mapping[str, Path], ct: Path, masks: Path | None) -> None:
        segments = [file for file in volumes.values() if is_segments(file)]
        label_map = named(volumes, LABEL_MAP_STEMS)
        if label_map is None and len(segments) == 1:
            label_map = segments[0]
        ours = label_map is not None and str(stem_of(label_map)).lower() == OUR_LABEL_MAP
        inside = self._volumes(masks) if masks is not None else {}
        found = Candidate(self._name(ct), ct, masks=inside, our_ids=ours)
        self._candidates.append(self._with_map(found, label_map))

    def _with_map(
        self, candidate: Candidate, label_map: Path | None, names: Path | None = None
    ) -> Candidate:
        if label_map is not None and stem_of(label_map) is None:  # by a list of pairs
            objects = files_below(label_map) if label_map.is_dir() else [label_map]
            return replace(candidate, objects=tuple(objects))
        if label_map is not None and is_segments(label_map):
            names = label_map
        return replace(candidate, label_map=label_map, label_names=names if label_map else None)

    def _nnunet(self, folder: Path, images: Path, labels: Path | None, here: _Above) -> None:
        names = folder / ROOT_NAME
        label_files = self._volumes(labels) if labels is not None else {}
        for stem, ct, channels in first_channels(self._volumes(images), label_files):
            if channels > 1:
                self._put_aside(ct, f"has {channels} channels; a CT has one")
                continue
            label = label_files.get(stem) or here.listed.get(ct)
            candidate = Candidate(self._name(ct), ct)
            self._candidates.append(
                self._with_map(candidate, label, names if names.is_file() else None)
            )
        for label in label_files.values():
            self._put_aside(label, UNPAIRED)

    def _volumes(self, folder: Path) -> dict[str, Path]:
        """The volumes in `folder`; a folder that is called so is put aside."""
        files, folders = self._list(folder) or ([], [])
        self._put_aside_volumes(folders)
        return by_stem(files)

    def _put_aside_volumes(self, folders: list[Path]) -> None:
        for path in by_stem(folders).values():
            self._put_aside(path, "a folder that is called like a NIfTI file")

    def _dicom(self, folders: list[Path], label: Path | None = None) -> None:
        try:
            found = find_series(*folders, on_unreadable=self._put_aside)
        except LimitExceeded as error:
            if len(folders) == 1:
                self._put_aside(folders[0], str(error))
            else:
                for folder in folders:
                    self._dicom([folder])
            return
        objects = {} if label else objects_of_series(found, self._put_aside)
        taken = {file for files in objects.values() for file in files}
        homes = [home_of(series) for series in found]
        at_home = Counter(homes)
        for series, home in zip(found, homes, strict=True):
            name = self._name(home)
            if at_home[home] > 1:
                name += printable(f" (series …{series.uid[-8:]}, {len(series.files)} files)")
            for file, why in series.left_out:
                self._put_aside(file, why)
            if series.reason is None:
                candidate = Candidate(name, series, objects=objects.get(series.uid, ()))
                self._candidates.append(
                    self._with_map(candidate, label or self._label_of_series(home))
                )
            else:
                for file in series.files:
                    if file not in taken and file not in self._set_aside:
                        self._put_aside(file, series.reason)

    def _label_of_series(self, home: Path) -> Path | None:
        """A label as a volume beside a series, by the names of the folders above its files."""
        for folder in (home, *home.parents):
            if not folder.is_relative_to(self._root):
                break
            beside = [self._stems(inner) for inner in label_folders_at(folder, self._root)]
            if (label := label_beside(folder.name, self._stems(folder), beside)) is not None:
                return label
        return named({str(stem_of(f)): f for f in self._stems(home).values()}, LABEL_MAP_STEMS)

    def _loose(self, folder: Path, files: list[Path], here: _Above) -> None:
        beside = [] if folder == self._root else [self._stems(f) for f in label_folders(folder)]
        for file in files:
            if file.suffix.lower() in OTHER_FORMATS:
                self._put_aside(file, f"{file.suffix} files are not read; convert it to NIfTI")
        volumes = by_stem(file for file in files if file not in self._set_aside)
        straight = {match["source"] for stem in volumes if (match := RESAMPLED.fullmatch(stem))}
        for stem, file in volumes.items():
            if stem in straight:
                self._put_aside(
                    file, "its slices are tilted or uneven: dcm2niix's straight copy counts"
                )
                continue
            label = label_beside(stem, self._stems(folder), beside) or here.listed.get(file)
            names = here.names if file in here.listed else None
            derivatives = (
                here.derived.get(bids_key(stem), Labels()) if stem.startswith("sub-") else Labels()
            )
            candidate = Candidate(
                self._name(file),
                file,
                masks=derivatives.masks,
                certain=label is not None or derivatives != Labels(),
            )
            self._candidates.append(
                self._with_map(
                    candidate, label or derivatives.label_map, names or derivatives.label_names
                )
            )

    def _put_aside(self, path: Path, reason: str) -> None:
        self._set_aside[path] = SetAside(self._name(path), printable(reason))

    def _other(self, file: Path) -> str:
        """Why a file that is no volume is left out."""
        for folder in file.parents:
            if folder in self._set_aside:
                return f"its folder: {self._set_aside[folder].reason}"
        if file.name.startswith("."):
            return "a hidden file"
        if not self._cases.isdisjoint(file.parents):
            return "lies in the folder of a case, and is no part of it"
        if file.name.upper() == "DICOMDIR":
            return "an index of DICOM files, which are read themselves"
        if file.suffix.lower() in ARCHIVES:
            return "an archive: unpack it first"
        return f"no volume ({file.suffix.lower() or 'without suffix'})"


def _is_dicom(file: Path) -> bool:
    return file.suffix.lower() not in NOT_DICOM and looks_like_dicom(file)
