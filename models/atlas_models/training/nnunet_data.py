"""Cases as nnU-Net's raw data: ``imagesTr``, ``labelsTr``, ``dataset.json``.

nnU-Net takes volumes as their files lie, so they are written in the orientation that the network
was trained in. Where nothing is known of an organ that it can tell, background is ignored: only
what is labelled teaches.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from atlas_core.atomic_writes import replace_file
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import write_volume
from numpy.typing import NDArray

IGNORE = "ignore"


@dataclass(frozen=True)
class NnunetCase:
    """One case to write.

    Attributes:
        ct: Hounsfield units ``[i, j, k]`` in the file's axis order, on `geometry`.
        masks: organ → where it is, ``[i, j, k]``; an organ without a mask is unknown.
    """

    id: str
    ct: NDArray[Any]
    masks: Mapping[str, NDArray[np.bool_]]
    geometry: VolumeGeometry


def with_ignored(labels: Mapping[str, Any]) -> dict[str, Any]:
    """`labels` of a ``dataset.json`` with one for voxels of which nothing is known.

    >>> with_ignored({"background": 0, "kidney": [1, 2], "tumour": 2})["ignore"]
    3
    """
    if IGNORE in labels:
        return dict(labels)
    values = [
        v for value in labels.values() for v in (value if isinstance(value, list) else [value])
    ]
    return {**labels, IGNORE: max(values) + 1}


def write_raw(
    folder: Path,
    cases: Iterable[NnunetCase],
    dataset: Mapping[str, Any],
    values: Mapping[str, int],
    flipped: Sequence[int] = (),
) -> None:
    """Write cases into `folder`, which is new.

    Args:
        dataset: the network's ``dataset.json``.
        values: organ → its value in label maps; organs that are in none are background.
        flipped: of (z, y, x), the axes along which files run against RAS+.
    """
    labels = with_ignored(dataset["labels"])
    for inner in ("imagesTr", "labelsTr"):
        (folder / inner).mkdir(parents=True)
    count = 0
    for case in cases:
        count += 1
        grid = _grid(case.geometry, flipped)
        known = label_map(case, values, labels[IGNORE])
        for name, voxels in (
            (f"imagesTr/{case.id}_0000.nii.gz", case.ct),
            (f"labelsTr/{case.id}.nii.gz", known),
        ):
            write_volume(folder / name, _turned(voxels, case.geometry, flipped), grid)
    content = {**dataset, "labels": labels, "numTraining": count, "file_ending": ".nii.gz"}
    replace_file(folder / "dataset.json", json.dumps(content, indent=1).encode())


def label_map(case: NnunetCase, values: Mapping[str, int], ignore: int) -> NDArray[np.uint8]:
    """The label map of a case ``[i, j, k]``.

    >>> geometry = VolumeGeometry.from_array((3, 1, 1), np.eye(4))
    >>> liver = np.array([True, False, False]).reshape(3, 1, 1)
    >>> case = NnunetCase("c", np.zeros((3, 1, 1)), {"liver": liver}, geometry)
    >>> label_map(case, {"liver": 1}, 9).ravel().tolist()
    [1, 0, 0]
    >>> label_map(case, {"liver": 1, "spleen": 2}, 9).ravel().tolist()
    [1, 9, 9]
    """
    unknown = values.keys() - case.masks.keys()
    known = np.full(case.geometry.shape, ignore if unknown else 0, np.uint8, order="F")
    for organ, mask in case.masks.items():
        # Another organ's voxels are known, too: they are none of the network's classes.
        known[mask] = values.get(organ, 0)
    return known


def _grid(geometry: VolumeGeometry, flipped: Sequence[int]) -> VolumeGeometry:
    """The canonical grid, with the axes of `flipped` turned round."""
    canonical = geometry.canonical()
    affine = canonical.matrix.copy()
    for axis in (2 - axis for axis in flipped):
        affine[:3, 3] += affine[:3, axis] * (canonical.shape[axis] - 1)
        affine[:3, axis] *= -1
    return VolumeGeometry.from_array(canonical.shape, affine)


def _turned(voxels: NDArray[Any], geometry: VolumeGeometry, flipped: Sequence[int]) -> NDArray[Any]:
    canonical = geometry.axis_map.to_canonical(voxels)
    return np.flip(canonical, tuple(2 - axis for axis in flipped))
