"""Kidneys that come in pieces are split as kidneys in memory are, however fine their grid."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging.label_maps import split_left_right
from atlas_core.importing.paired_organs import split_sides
from numpy.typing import NDArray

AFFINE = np.array([[0, 0, 2.0, -90], [0, -2.0, 0, 60], [-1.5, 0, 0, 300], [0, 0, 0, 1]])
GRID = VolumeGeometry.from_array((70, 50, 90), AFFINE)
"""The file's last axis runs from left to right."""

MIDLINE_MM = 0.0


def mask(*parts: tuple[slice, slice, slice]) -> NDArray[np.bool_]:
    voxels = np.zeros(GRID.shape, np.bool_)
    for part in parts:
        voxels[part] = True
    return voxels


LEFT = np.s_[10:40, 10:30, 8:30]
RIGHT = np.s_[15:50, 10:30, 60:83]
STRAY = np.s_[66:69, 45:48, 86:89]
KIDNEYS = {
    "two": mask(LEFT, RIGHT),
    "two and a stray piece": mask(LEFT, RIGHT, STRAY),
    "one": mask(RIGHT),
    "none": mask(),
    "joined": mask(LEFT, RIGHT, np.s_[20:22, 18:20, 25:65]),
}


def split(voxels: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """Both sides of a mask that comes in pieces of a thousand voxels."""
    flat = voxels.ravel(order="F")

    def pieces() -> Iterator[NDArray[np.bool_]]:
        for start in range(0, flat.size, 1000):
            yield flat[start : start + 1000].copy()

    sides = split_sides(pieces, GRID, midline_mm=MIDLINE_MM)
    return [np.concatenate(list(side())).reshape(GRID.shape, order="F") for side in sides]


@pytest.mark.parametrize("voxels", KIDNEYS.values(), ids=KIDNEYS)
@pytest.mark.parametrize("blocks", [1 << 24, 40_000, 5_000])
def test_pieces_are_split_as_the_whole(
    voxels: NDArray[np.bool_], blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks of one voxel and more; only a cut through joined kidneys may move by a block."""
    monkeypatch.setattr("atlas_core.importing.paired_organs.MAX_BLOCKS", blocks)
    expected = split_left_right(voxels, GRID, midline_mm=MIDLINE_MM)
    found = split(voxels)
    assert not (found[0] & found[1]).any()
    np.testing.assert_array_equal(found[0] | found[1], voxels)
    for one, other in zip(found, expected, strict=True):
        assert np.count_nonzero(one != other) <= 0.01 * np.count_nonzero(voxels)
        if blocks == 1 << 24:
            np.testing.assert_array_equal(one, other)
