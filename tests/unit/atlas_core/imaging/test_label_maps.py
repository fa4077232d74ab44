"""Label values to organs, and left from right by where the patient's left is."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from atlas_core.errors import GridMismatch, UnknownLabel
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import read_label
from atlas_core.imaging.label_maps import organ_mask, split_left_right
from numpy.typing import NDArray
from reference_assembly import map_labels

# 300 × 100 × 200 mm around the patient's midline at x = 0, voxels of 2.5 mm.
GRID = VolumeGeometry.from_array(
    (120, 40, 80), np.array([[2.5, 0, 0, -150], [0, 2.5, 0, -50], [0, 0, 2.5, 0], [0, 0, 0, 1.0]])
)
Centre = tuple[float, float, float]


def ellipsoids(*parts: tuple[Centre, Centre]) -> NDArray[np.uint8]:
    """Mask on `GRID`: every part is (centre mm, radii mm)."""
    index = np.stack(np.meshgrid(*map(np.arange, GRID.shape), indexing="ij"), -1)
    places = index @ GRID.matrix[:3, :3].T + GRID.matrix[:3, 3]
    inside = [((places - centre) ** 2 / np.square(radii)).sum(-1) <= 1 for centre, radii in parts]
    return np.any(inside, axis=0).astype(np.uint8)


KIDNEY = (25.0, 20.0, 55.0)
LEFT, RIGHT = ellipsoids(((-70, 0, 110), KIDNEY)), ellipsoids(((70, 0, 90), KIDNEY))


def assert_split(
    mask: NDArray[np.uint8], left: NDArray[np.uint8], right: NDArray[np.uint8]
) -> None:
    """`mask` splits into `left` and `right` in each of the 48 orientations of the file."""
    for axes in permutations(range(3)):
        for flips in product((1, -1), repeat=3):
            affine = GRID.matrix.copy()
            turn = tuple(slice(None, None, flip) for flip in flips)
            for axis, flip in enumerate(flips):
                if flip < 0:
                    affine[:3, 3] += affine[:3, axis] * (GRID.shape[axis] - 1)
                    affine[:3, axis] *= -1
            affine[:, :3] = affine[:, axes]
            turned = mask[turn].transpose(axes)
            found = split_left_right(turned, VolumeGeometry.from_array(turned.shape, affine))
            assert np.array_equal(found[0], left[turn].transpose(axes))
            assert np.array_equal(found[1], right[turn].transpose(axes))


def test_two_kidneys_are_distinguished_in_every_orientation() -> None:
    assert_split(LEFT | RIGHT, LEFT, RIGHT)


def test_pieces_go_to_the_nearer_side() -> None:
    """A polar fragment and a cyst on the left, a tumour beside the right kidney."""
    left = LEFT | ellipsoids(((-60, 0, 175), (6, 6, 6)), ((-110, 10, 120), (8, 8, 8)))
    right = RIGHT | ellipsoids(((40, 20, 30), (9, 9, 9)))
    found = split_left_right(left | right, GRID)
    assert np.array_equal(found[0], left)
    assert np.array_equal(found[1], right)


def test_a_small_kidney_beside_a_large_one_is_still_the_other_one() -> None:
    atrophic = ellipsoids(((70, 0, 90), (8, 8, 12)))
    found = split_left_right(LEFT | atrophic, GRID)
    assert np.array_equal(found[0], LEFT)
    assert np.array_equal(found[1], atrophic)


def test_a_speck_in_the_flank_does_not_turn_the_sides_round() -> None:
    """Left of the left kidney lies a speck, which does not make it the right one."""
    speck = ellipsoids(((-130, 0, 110), (4, 4, 4)))
    found = split_left_right(LEFT | RIGHT | speck, GRID)
    assert np.array_equal(found[0], LEFT | speck)
    assert np.array_equal(found[1], RIGHT)


@pytest.mark.parametrize(("mask", "side"), [(LEFT, 0), (RIGHT, 1)])
def test_an_only_kidney_is_named_by_the_midline(mask: NDArray[np.uint8], side: int) -> None:
    found = split_left_right(mask, GRID)
    assert np.array_equal(found[side], mask)
    assert not found[1 - side].any()


def test_the_midline_may_be_given_where_the_scan_is_off_centre() -> None:
    found = split_left_right(LEFT, GRID, midline_mm=-100.0)
    assert np.array_equal(found[1], LEFT)


def test_a_horseshoe_kidney_is_cut_at_its_isthmus() -> None:
    isthmus = ellipsoids(((0, 0, 70), (60, 6, 8)))
    left, right = split_left_right(LEFT | RIGHT | isthmus, GRID)
    assert not (left & right).any()
    assert np.array_equal(left | right, (LEFT | RIGHT | isthmus).astype(bool))
    assert left[LEFT > 0].mean() > 0.99
    assert right[RIGHT > 0].mean() > 0.99
    assert 0.8 < left.sum() / right.sum() < 1.25


def test_an_only_kidney_with_a_large_tumour_is_not_cut() -> None:
    mask = LEFT | ellipsoids(((-50, 0, 60), (65, 40, 50)))
    left, right = split_left_right(mask, GRID)
    assert np.array_equal(left, mask)
    assert not right.any()


def test_no_kidney_splits_into_nothing() -> None:
    left, right = split_left_right(np.zeros(GRID.shape, np.uint8), GRID)
    assert left.shape == right.shape == GRID.shape
    assert not left.any()
    assert not right.any()


def test_a_mask_on_another_grid_is_refused() -> None:
    with pytest.raises(GridMismatch):
        split_left_right(np.zeros((2, 2, 2)), GRID)


def test_values_are_joined_to_organs() -> None:
    voxels = np.array([[[0, 1, 2, 3, 6]]], np.uint8)
    masks = map_labels(voxels, {6: "liver", 1: "kidney", 2: "kidney", 3: None, 9: "spleen"})
    assert list(masks) == ["liver", "kidney", "spleen"]
    assert masks["kidney"].tolist() == [[[False, True, True, False, False]]]
    assert masks["liver"].tolist() == [[[False, False, False, False, True]]]
    assert not masks["spleen"].any()  # annotated, and not there


def test_values_outside_the_map_are_refused_by_name() -> None:
    with pytest.raises(UnknownLabel, match=r"2 label values.*expected 1, 2, got -3, 7") as error:
        map_labels(np.array([[[0, 1, 7, -3]]], np.int16), {1: "liver", 2: None})
    assert error.value.remedy


# Real labels ----------------------------------------------------------------------------------


def test_kidney_and_tumour_of_a_real_case_split_by_patient_side(shared_data: Path) -> None:
    label = read_label(shared_data / "kits19/data/case_00072/segmentation.nii.gz")
    assert label.geometry.axis_codes == "IPL"
    kidneys = map_labels(label.voxels, {1: "kidney", 2: "kidney"})["kidney"]
    assert kidneys.sum() == 369_368 + 1_565
    left, right = split_left_right(kidneys, label.geometry)
    assert left.sum() + right.sum() == kidneys.sum()
    assert not (left & right).any()
    for side in (left, right):
        assert 0.45 < side.sum() / kidneys.sum() < 0.55
    x_left, x_right = (
        (np.argwhere(side) @ label.geometry.matrix[:3, :3].T + label.geometry.matrix[:3, 3])[:, 0]
        for side in (left, right)
    )
    assert x_left.max() < x_right.min()  # RAS: the patient's left is the smaller x


@pytest.mark.parametrize("case", ["s0327", "s0328"])
def test_the_split_agrees_with_human_sides(shared_data: Path, case: str) -> None:
    folder = shared_data / f"totalsegdata/Data/{case}/segmentations"
    left, right = (read_label(folder / f"kidney_{side}.nii.gz") for side in ("left", "right"))
    found = split_left_right(left.voxels | right.voxels, left.geometry)
    assert np.array_equal(found[0], left.voxels)
    assert np.array_equal(found[1], right.voxels)


def test_organ_mask_keeps_the_memory_order() -> None:
    voxels = np.asfortranarray(np.ones((2, 3, 4), np.uint8))
    assert organ_mask(voxels, [1]).flags.f_contiguous
