"""What the names in a folder say: a case folder, nnU-Net's images and channels, a series' home."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from atlas_core.imaging.dicom_reader import DicomSeries
from atlas_core.importing.candidates import is_segments, named
from atlas_core.importing.pairing import label_folders

CT_STEMS: Final = ("ct", "imaging")
"""Names of the CT in a case folder: AbdomenAtlas and TotalSegmentator, KiTS."""

OUR_LABEL_MAP: Final = "combined_labels"

LABEL_MAP_STEMS: Final = (OUR_LABEL_MAP, "segmentation", "aggregated_MAJ_seg")
"""Names of the label map in a case folder: AbdomenAtlas, KiTS19, KiTS21 and later."""

NNUNET_IMAGES: Final = re.compile(r"images(Tr|Ts|Va|Val)", re.IGNORECASE)


def files_below(folder: Path) -> list[Path]:
    """Every file below `folder`, sorted, hidden ones too; links to folders are not followed."""
    found: list[Path] = []
    waiting = [folder]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry))
                elif not entry.is_dir():
                    found.append(Path(entry))
    return sorted(found)


def ct_of_case(volumes: Mapping[str, Path], *, beside_masks: bool) -> Path | None:
    """The CT of a case folder that holds `volumes`, or None if it is no case folder.

    A folder of loose files may hold one called ``ct`` too: beside others, it takes masks or a label
    map to make it a case folder. Beside masks, a single volume of any name is their CT.
    """
    found = named(volumes, CT_STEMS)
    if len(volumes) == 1:
        return found if found is not None or not beside_masks else next(iter(volumes.values()))
    segments = [file for file in volumes.values() if is_segments(file)]
    if found is None and len(volumes) == 2 and len(segments) == 1:
        return next(file for file in volumes.values() if not is_segments(file))
    labelled = beside_masks or segments or named(volumes, LABEL_MAP_STEMS) is not None
    return found if labelled else None


def nnunet_folders(folders: list[Path]) -> list[tuple[Path, Path | None]]:
    """Folders of images with their folders of labels, of an nnU-Net raw dataset."""
    by_name = {inner.name.lower(): inner for inner in folders}
    return [
        (images, by_name.get(images.name.lower().replace("images", "labels", 1)))
        for images in folders
        if NNUNET_IMAGES.fullmatch(images.name)
    ]


def first_channels(
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


def home_of(series: DicomSeries) -> Path:
    """The folder that holds all files of a series."""
    return Path(os.path.commonpath([file.parent for file in series.files]))


def label_folders_at(folder: Path, root: Path) -> list[Path]:
    """Folders of labels beside a folder of DICOM files, inside `root`."""
    return label_folders(folder) if folder != root else []
