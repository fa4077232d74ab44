"""Checks of sent labels: whatever axis order they come in, whatever value they use."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from atlas_core.errors import CorruptFile, GridMismatch, UnknownLabel
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import LabelVolume, write_volume
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.records import Case
from atlas_core.store import CaseStore
from atlas_review.volumes import label_on_grid, organ_mask, read_upload, require_organ_values
from numpy.typing import NDArray

GRID = VolumeGeometry.from_array((6, 5, 4), np.diag([-1.0, 2.0, 5.0, 1.0]))
CASE = Case(
    id="lits_0123456789ab",
    dataset="lits",
    content_sha256="a" * 64,
    shape=GRID.shape,
    affine=GRID.affine,
    imported_at=datetime(2026, 3, 2, tzinfo=UTC),
)


def a_map(*values: int) -> NDArray[np.uint8]:
    """One voxel of each value."""
    voxels = np.zeros(GRID.shape, np.uint8, order="F")
    voxels[: len(values), 1, 2] = values
    return voxels


def a_label(*values: int) -> LabelVolume:
    return LabelVolume(a_map(*values), GRID, (0, *sorted(values)))


def written(folder: Path, voxels: NDArray[np.uint8], geometry: VolumeGeometry = GRID) -> Path:
    path = folder / "label.nii.gz"
    write_volume(path, np.asfortranarray(voxels), geometry)
    return path


def test_another_axis_order_is_the_same_label(tmp_path: Path) -> None:
    canonical = GRID.axis_map.to_canonical(a_map(5, 7))
    label = label_on_grid(written(tmp_path, canonical, GRID.canonical()), CASE)
    assert np.array_equal(label.voxels, a_map(5, 7))
    assert label.geometry == GRID
    assert label.values == (0, 5, 7)


def test_another_grid_is_refused_by_the_name_of_the_case(tmp_path: Path) -> None:
    larger = VolumeGeometry.from_array((7, 5, 4), GRID.matrix)
    beside = GRID.cropped((0, 0, 0), (5, 5, 4)).matrix.copy()
    beside[0, 3] += 0.4  # between two voxels
    for grid in (larger, VolumeGeometry.from_array((5, 5, 4), beside)):
        path = written(tmp_path, np.ones(grid.shape, np.uint8), grid)
        with pytest.raises(GridMismatch, match=CASE.id):
            label_on_grid(path, CASE)


@pytest.mark.parametrize("turned", [False, True])
def test_a_box_of_the_grid_lies_where_its_header_says(tmp_path: Path, turned: bool) -> None:
    box = np.asfortranarray(a_map(5, 7)[:3, 1:3, 1:])
    grid = GRID.cropped((0, 1, 1), box.shape)
    if turned:
        box, grid = grid.axis_map.to_canonical(box), grid.canonical()
    label = label_on_grid(written(tmp_path, box, grid), CASE)
    assert np.array_equal(label.voxels, a_map(5, 7))
    assert (label.geometry, label.values) == (GRID, (0, 5, 7))


def test_an_upload_leaves_nothing_in_the_store(tmp_path: Path) -> None:
    store = CaseStore(tmp_path / "store")
    content = io.BytesIO(written(tmp_path, a_map(5)).read_bytes())
    content.read()  # from wherever its reader has left it
    assert np.array_equal(read_upload(store, content, CASE).label.voxels, a_map(5))
    with pytest.raises(CorruptFile, match="empty"):
        read_upload(store, io.BytesIO(), CASE)
    assert [path for path in store.root.rglob("*") if path.is_file()] == []


def test_the_only_value_is_the_organ_and_one_of_several_has_to_be_named() -> None:
    assert np.array_equal(organ_mask(a_label(7), CASE, None).voxels, a_map(1))
    assert np.array_equal(organ_mask(a_label(5, 7), CASE, 5).voxels, a_map(1))
    with pytest.raises(UnknownLabel, match="one value"):
        organ_mask(a_label(5, 7), CASE, None)
    with pytest.raises(UnknownLabel, match="does not hold"):
        organ_mask(a_label(5, 7), CASE, 6)


def test_an_empty_mask_is_an_absent_organ() -> None:
    for value in (None, 5):
        assert not organ_mask(a_label(), CASE, value).voxels.any()


def test_a_label_map_holds_organs_only() -> None:
    require_organ_values(a_label(1, 9), CASE, ABDOMEN_ATLAS)
    with pytest.raises(UnknownLabel) as caught:
        require_organ_values(a_label(1, 77), CASE, ABDOMEN_ATLAS)
    assert caught.value.got == "77"
