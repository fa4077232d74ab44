"""The body's box: all of the body, nothing of what lies around it, whatever the spacing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from atlas_attention.fusion import Box
from atlas_attention.scoring.body_box import RASTER_MM, body_box, on_grid
from atlas_core.geometry import VolumeGeometry
from atlas_core.phantoms import PhantomGrid, make_phantom
from numpy.typing import NDArray

AIR, TISSUE, ABOVE = -1000.0, 40.0, -175.0


@dataclass
class Slices:
    """A CT ``[z, y, x]`` of one spacing per axis x, y, z; records how much is read at once."""

    voxels: NDArray[np.float32]
    spacing_mm: tuple[float, float, float]
    most: int = 0

    @property
    def canonical(self) -> VolumeGeometry:
        return VolumeGeometry.from_array(self.voxels.shape[::-1], np.diag([*self.spacing_mm, 1.0]))

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        self.most = max(self.most, stop - start)
        return self.voxels[start:stop]


def lump(spacing_mm: tuple[float, float, float], box: Box) -> Slices:
    voxels = np.full((60, 90, 100), AIR, np.float32)
    voxels[tuple(slice(*part) for part in box)] = TISSUE
    return Slices(voxels, spacing_mm)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.7, 0.8, 5.0), (3.0, 4.0, 9.0)])
def test_the_box_holds_the_body_and_little_more(spacing_mm: tuple[float, float, float]) -> None:
    inside: Box = ((13, 47), (21, 70), (8, 93))
    ct = lump(spacing_mm, inside)
    box = body_box(ct, ABOVE)
    assert box is not None
    assert ct.most == 1
    for (start, stop), (first, last), mm in zip(box, inside, spacing_mm[::-1], strict=True):
        assert start <= first and last <= stop
        assert (first - start) * mm <= RASTER_MM + mm and (stop - last) * mm <= RASTER_MM + mm


def test_a_table_and_specks_are_not_body_but_a_second_leg_is() -> None:
    body: Box = ((0, 60), (30, 70), (10, 45))
    ct = lump((2.0, 2.0, 2.0), body)
    ct.voxels[:, 6:9, :] = 300.0
    ct.voxels[30, 80, 90] = TISSUE
    expected = body_box(lump((2.0, 2.0, 2.0), body), ABOVE)
    assert body_box(ct, ABOVE) == expected
    ct.voxels[:, 40:60, 60:80] = TISSUE
    with_leg = body_box(ct, ABOVE)
    assert with_leg is not None and expected is not None
    assert with_leg[:2] == expected[:2] and with_leg[2][1] >= 80


def test_all_air_has_no_body() -> None:
    assert body_box(lump((1.0, 1.0, 1.0), ((0, 0), (0, 0), (0, 0))), ABOVE) is None


@pytest.mark.parametrize("seed", range(3))
def test_no_organ_of_a_phantom_lies_outside(seed: int) -> None:
    phantom = make_phantom(seed, grid=PhantomGrid(columns=128, slice_mm=4.0, axis_codes="RAS"))
    ct = Slices(phantom.ct.transpose(2, 1, 0).astype(np.float32), phantom.geometry.spacing_mm)
    box = body_box(ct, ABOVE)
    assert box is not None
    outside = phantom.truth.transpose(2, 1, 0).copy()
    outside[tuple(slice(*part) for part in box)] = 0
    assert not outside.any()


def test_a_box_on_another_grid_holds_the_same_millimetres() -> None:
    box = on_grid(((3, 50), (0, 90), (7, 8)), (60, 90, 100), (20, 31, 33))
    for (start, stop), (first, last), old, new in zip(
        box, ((3, 50), (0, 90), (7, 8)), (60, 90, 100), (20, 31, 33), strict=True
    ):
        assert start / new <= first / old < (start + 1) / new
        assert (stop - 1) / new < last / old <= stop / new
