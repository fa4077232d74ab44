"""The original labels of one case, read from its mask files and label map, organ by organ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atlas_core.errors import AtlasError, GridMismatch, UnknownLabel
from atlas_core.imaging import LabelVolume, Volume, distinct_values, read_label
from atlas_core.imaging.label_maps import organ_mask, require_known_labels, split_left_right
from atlas_core.imaging.resampling import resample_label
from atlas_core.importing.plausibility import midline_mm
from atlas_core.importing.presets import KIDNEYS, SIDES, LabelMap
from atlas_core.organs import BACKGROUND

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class LabelFiles:
    """Label files of one case, and what they mean.

    Attributes:
        masks: file name without suffix → mask of one structure.
        label_map: all structures in one file.
        meaning: the organs behind names and values.
    """

    masks: Mapping[str, Path]
    label_map: Path | None
    meaning: LabelMap


@dataclass(frozen=True)
class Reports:
    """Callbacks for files that are refused, or deserve a look.

    Attributes:
        refuse, warn: called with the file and the reason.
    """

    refuse: Callable[[Path, str], None]
    warn: Callable[[Path, str], None]


def original_masks(
    files: LabelFiles, ct: Volume, reports: Reports, *, resample: bool = False
) -> Iterator[tuple[str, Mask]]:
    """Every annotated organ with its mask on the grid of `ct`, one at a time.

    An empty mask file counts too: it states that the patient lacks the organ. So does a label map
    without the organ's value, unless its dataset is partially annotated. Where both kinds of file
    have an organ, the mask file is used. A file that cannot be used is reported and left out.

    Args:
        resample: put a label that lies on another grid onto the CT's instead of refusing it.
    """
    reader = _Reader(ct, reports, resample)
    done: set[str] = set()
    for structure, mask in _from_masks(files, reader):
        for organ, side in _sides(structure, mask, ct):
            done.add(organ)
            yield organ, side
    for structure, mask in _from_label_map(files, reader):
        for organ, side in _sides(structure, mask, ct):
            if organ not in done:
                yield organ, side


@dataclass(frozen=True)
class _Reader:
    """Reads label files onto the grid of one CT and reports those that cannot be used."""

    ct: Volume
    reports: Reports
    resample: bool

    def read(self, path: Path) -> LabelVolume | None:
        """The label on the CT's grid, or None."""
        try:
            return self._on_grid(path, read_label(path))
        except AtlasError as error:
            self.reports.refuse(path, str(error))
        except OSError as error:
            self.reports.refuse(path, f"cannot be read: {error.strerror}")
        return None

    def mask(self, path: Path) -> Mask | None:
        """A mask on the CT's grid, or None. Its one value may be 1, 255 or any other."""
        label = self.read(path)
        if label is None:
            return None
        values = [value for value in label.values if value != BACKGROUND]
        if len(values) > 1:
            error = UnknownLabel(
                "a mask holds one structure", expected="0 and one other value", got=label.values
            )
            self.reports.refuse(path, str(error))
            return None
        return organ_mask(label.voxels, values)

    def _on_grid(self, path: Path, label: LabelVolume) -> LabelVolume:
        grid = self.ct.geometry
        if grid.same_grid(label.geometry):
            return label
        if grid.canonical().same_grid(label.geometry.canonical()):
            # The same voxels in another axis order: turned, nothing is resampled.
            turned = label.geometry.axis_map.to_canonical(label.voxels)
            return LabelVolume(grid.axis_map.from_canonical(turned), grid, label.values)
        if not self.resample:
            grid.require_same_grid(label.geometry, this="CT", that="label", case="")
        voxels = resample_label(label.voxels, label.geometry, grid)
        if any(value != BACKGROUND for value in label.values) and not voxels.any():
            raise GridMismatch(
                "nothing of the label lies in the CT",
                expected=f"CT {grid}",
                got=f"label {label.geometry}",
            )
        self.reports.warn(path, "resampled onto the grid of its CT")
        return LabelVolume(voxels, grid, distinct_values(voxels))


def _from_masks(files: LabelFiles, reader: _Reader) -> Iterator[tuple[str, Mask]]:
    """Structures that have a mask file of their own.

    Of several files of one structure, the one named first in the map is the organ, the others are
    lesions in it: without the organ they do not count, and if one cannot be read, neither does it.
    """
    meaning = files.meaning.masks
    for structure in dict.fromkeys(meaning.values()):
        names = [name for name, named in meaning.items() if named == structure]
        if names[0] not in files.masks:
            continue
        masks = [reader.mask(files.masks[name]) for name in names if name in files.masks]
        readable = [mask for mask in masks if mask is not None]
        if len(readable) == len(masks):
            yield structure, np.logical_or.reduce(readable)


def _from_label_map(files: LabelFiles, reader: _Reader) -> Iterator[tuple[str, Mask]]:
    """Structures of the label map; nothing if one of its values is unknown."""
    if files.label_map is None:
        return
    label = reader.read(files.label_map)
    if label is None:
        return
    meaning = files.meaning
    try:
        require_known_labels(label.values, meaning.values)
    except UnknownLabel as error:
        reader.reports.refuse(files.label_map, str(error))
        return
    for structure in dict.fromkeys(meaning.labels.values()):
        values = [value for value, named in meaning.labels.items() if named == structure]
        if not meaning.partial or set(values) & set(label.values):
            yield structure, organ_mask(label.voxels, values)


def _sides(structure: str, mask: Mask, ct: Volume) -> Iterator[tuple[str, Mask]]:
    """The structure itself, or both kidneys out of one."""
    if structure != KIDNEYS:
        yield structure, mask
        return
    sides = split_left_right(mask, ct.geometry, midline_mm=midline_mm(ct))
    yield from zip(SIDES, sides, strict=True)
