"""From the model's grid to the CT's: trilinear, integer, slab by slab."""

from __future__ import annotations

import numpy as np
import pytest
from atlas_attention.fusion import Fused, fuse
from atlas_attention.scoring.native_grid import AxisPositions, NativeGrid
from atlas_core.geometry import VolumeGeometry
from numpy.typing import NDArray

MODEL = (20, 30, 40)
LABELS = (7, 3, 200)
NATIVES = [(20, 30, 40), (37, 61, 90), (9, 61, 90), (50, 30, 33), (1, 7, 9), (20, 64, 40)]


def fused_lumps(seed: int = 0) -> Fused:
    """Three organs as lumps in air, on the model's grid."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in MODEL), indexing="ij")
    soft = np.zeros((3, 3, *MODEL))
    for c in range(3):
        a, b, d = rng.uniform(-0.5, 0.5, 3)
        for n in range(3):
            distance = np.sqrt((z - a) ** 2 + (y - b) ** 2 + (x - d) ** 2)
            soft[n, c] = 1 / (1 + np.exp(20 * (distance - 0.5) + rng.normal(scale=1.0, size=MODEL)))
    return fuse(np.rint(255 * np.where(soft > 0.02, soft, 0)).astype(np.uint8))


def to_native(
    fused: Fused,
    native: tuple[int, int, int],
    cuts: tuple[int, ...] = MODEL[:1],
    flips: tuple[bool, bool, bool] = (False, False, False),
    **options: int,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NativeGrid]:
    """The whole result, put together on the canonical grid."""
    grid = NativeGrid(fused.label.shape, native, LABELS, flips=flips, **options)  # type: ignore[arg-type]
    attention = np.zeros((len(LABELS), *native), np.uint8)
    label = np.zeros(native, np.uint8)
    at = given = 0
    for slices in cuts:
        part = Fused(
            *(
                volume[..., at : at + slices, :, :]
                for volume in (fused.attention, fused.mean, fused.label)
            )
        )
        at += slices
        for slab in grid.push(part):
            assert slab.start == given
            given = slab.stop
            attention[:, slab.start : slab.stop] = slab.attention[:, :: -1 if flips[0] else 1]
            label[slab.start : slab.stop] = slab.label[:: -1 if flips[0] else 1]
    assert given == native[0]
    return attention, label, grid


def trilinear(volume: NDArray[np.uint8], native: tuple[int, int, int]) -> NDArray[np.float64]:
    """Plain linear interpolation along z, y, x at the centres of the native voxels."""
    out = volume.astype(np.float64)
    for axis, n in enumerate(native):
        m = MODEL[axis]
        at = np.clip((np.arange(n) + 0.5) * m / n - 0.5, 0, m - 1)
        lower = np.minimum(at.astype(int), max(0, m - 2))
        share = (at - lower).reshape([-1 if a == axis else 1 for a in range(3)])
        below, above = (np.take(out, np.minimum(i, m - 1), axis - 3) for i in (lower, lower + 1))
        out = below * (1 - share) + above * share
    return out


@pytest.mark.parametrize("native", NATIVES)
def test_is_linear_interpolation(native: tuple[int, int, int]) -> None:
    fused = fused_lumps()
    attention, label, _ = to_native(fused, native)
    # Half a step of rounding, and 1/512 of a voxel in position along each axis at full contrast.
    assert (
        np.abs(attention - trilinear(fused.attention, native)).max() <= 0.5 + 3 * 255 / 512 + 0.01
    )
    mean = trilinear(fused.mean, native)
    expected = np.where(mean.max(axis=0) > 127.5, np.array(LABELS)[mean.argmax(axis=0)], 0)
    second, first = np.sort(mean, axis=0)[-2:]
    close = (np.abs(first - 127.5) < 1.5) | ((first > 126) & (first - second < 1.5))
    assert (label == expected)[~close].all()
    assert close.mean() < 0.1 and label.any()


def test_equal_grids_change_nothing() -> None:
    fused = fused_lumps()
    attention, label, _ = to_native(fused, MODEL)
    assert (attention == fused.attention).all()
    assert (label == np.array([0, *LABELS])[fused.label]).all()


def test_an_axis_that_both_grids_share_is_unchanged() -> None:
    """Only z is resampled here; slices at model positions come through untouched."""
    fused = fused_lumps()
    attention, _, _ = to_native(fused, (60, 30, 40))
    assert (attention[:, 1::3] == fused.attention).all()


@pytest.mark.parametrize("native", NATIVES)
@pytest.mark.parametrize("cuts", [(1,) * 20, (3, 1, 7, 9), (0, 19, 0, 1)])
def test_slabs_equal_the_whole(native: tuple[int, int, int], cuts: tuple[int, ...]) -> None:
    fused = fused_lumps()
    attention, label, grid = to_native(fused, native)
    again, named, other = to_native(fused, native, cuts, slab_slices=5, threads=2)
    assert (again == attention).all() and (named == label).all()
    for counted, recounted, truth in (
        (grid.attention_sum, other.attention_sum, attention.sum(axis=(1, 2, 3), dtype=int)),
        (grid.attended, other.attended, (attention > 0).sum(axis=(1, 2, 3))),
        (grid.labelled, other.labelled, np.array([(label == name).sum() for name in LABELS])),
    ):
        assert (counted == truth).all() and (recounted == truth).all()


@pytest.mark.parametrize("native", NATIVES)
def test_flips_commute_with_resampling(native: tuple[int, int, int]) -> None:
    fused = fused_lumps()
    attention, label, _ = to_native(fused, native)
    turned = Fused(
        *(
            volume[..., ::-1, ::-1, ::-1].copy()
            for volume in (fused.attention, fused.mean, fused.label)
        )
    )
    again, named, _ = to_native(turned, native)
    assert (again[:, ::-1, ::-1, ::-1] == attention).all()
    assert (named[::-1, ::-1, ::-1] == label).all()


@pytest.mark.parametrize("native", NATIVES)
@pytest.mark.parametrize(
    "flips", [(True, False, False), (False, True, False), (False, False, True)]
)
def test_directions_of_the_file_only_flip_the_slabs(
    native: tuple[int, int, int], flips: tuple[bool, bool, bool]
) -> None:
    fused = fused_lumps()
    attention, label, _ = to_native(fused, native)
    again, named, _ = to_native(fused, native, (4, 9, 7), flips)
    in_plane = tuple(slice(None, None, -1 if back else 1) for back in flips[1:])
    assert (again[:, :, *in_plane] == attention).all()
    assert (named[:, *in_plane] == label).all()


@pytest.mark.parametrize(
    "model, native", [(5, 12), (12, 5), (7, 7), (1, 9), (9, 1), (267, 512), (400, 90)]
)
def test_positions_are_those_of_the_geometry(model: int, native: int) -> None:
    """Both grids' voxel centres in millimetres, by the affines of `VolumeGeometry.resampled`."""
    positions = AxisPositions.between(model, native)
    old = VolumeGeometry.from_array((native, 1, 1), np.eye(4))
    new = old.resampled((native / model, 1.0, 1.0))
    assert new.shape[0] == model
    x = (
        np.linalg.inv(new.matrix)
        @ old.matrix
        @ np.array([np.arange(native), *np.zeros((2, native)), np.ones(native)])
    )
    exact = np.clip(x[0], 0, model - 1)
    assert np.abs(positions.lower + positions.weight / 256 - exact).max() <= 1 / 512 + 1e-9
    assert positions.upper.max() <= model - 1
