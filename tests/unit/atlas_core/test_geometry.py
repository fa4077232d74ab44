"""Grids: what is refused, what a message says, and the traps of real headers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from atlas_core.errors import GridMismatch, LimitExceeded, UnsupportedVolume
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import read_header, read_volume
from numpy.typing import NDArray

IPL = VolumeGeometry.from_array(
    (164, 512, 400),
    np.array([[0, 0, -0.664, 0.0], [0, -0.664, 0, 0], [-2.5, 0, 0, 7], [0, 0, 0, 1]]),
)


def test_a_grid_describes_itself() -> None:
    assert str(IPL) == "164×512×400 IPL, 2.5×0.664×0.664 mm, origin (0.0, 0.0, 7.0)"
    assert IPL.axis_codes == "IPL"
    assert IPL.voxels == 164 * 512 * 400
    assert IPL.voxel_ml == pytest.approx(2.5 * 0.664 * 0.664 / 1000)
    assert IPL.canonical().shape == (400, 512, 164)
    assert not IPL.matrix.flags.writeable


def test_the_volume_of_a_sheared_voxel_is_its_determinant() -> None:
    sheared = np.array([[0.5, 0.3, 0, 0], [0, 0.5, 0.2, 0], [0, 0, 2, 0], [0, 0, 0, 1.0]])
    assert VolumeGeometry.from_array((2, 2, 2), sheared).voxel_ml == pytest.approx(0.0005)


@pytest.mark.parametrize(
    ("shape", "affine", "reason"),
    [
        ((4, 4), np.eye(4), "three axes"),
        ((4, 0, 4), np.eye(4), "three axes"),
        ((4, 4, 4), np.eye(3), "affine is not finite"),
        ((4, 4, 4), np.diag([np.nan, 1, 1, 1]), "affine is not finite"),
        ((4, 4, 4), np.diag([0, 1, 1, 1.0]), "implausible voxel spacing"),
        ((4, 4, 4), np.diag([500, 1, 1, 1.0]), "implausible voxel spacing"),
        ((4, 4, 4), np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "span"),
    ],
)
def test_what_is_no_grid_is_refused(
    shape: tuple[int, ...], affine: NDArray[np.float64], reason: str
) -> None:
    with pytest.raises(UnsupportedVolume, match=reason):
        VolumeGeometry.from_array(shape, affine)


def test_turning_copies_nothing() -> None:
    voxels = np.zeros((2, 3, 4), np.int16)
    geometry = VolumeGeometry.from_array(voxels.shape, np.diag([-1, 1, -2, 1.0]))
    assert np.shares_memory(geometry.axis_map.to_canonical(voxels), voxels)
    assert np.shares_memory(geometry.axis_map.from_canonical(voxels), voxels)


def test_a_mismatch_names_both_grids() -> None:
    other = VolumeGeometry.from_array((164, 512, 400), np.diag([2.5, 0.664, 0.664, 1]))
    with pytest.raises(GridMismatch) as error:
        IPL.require_same_grid(other, this="CT", that="liver mask", case="ct_000000000012")
    message = str(error.value)
    assert message.startswith("ct_000000000012: liver mask and CT have different grids")
    assert "IPL" in message
    assert "RAS" in message
    assert "--resample" in message


def test_masks_pair_with_the_ct_whose_header_they_copied(shared_data: Path) -> None:
    """A CT cropped without moving its origin: only shape and header can be compared, and are."""
    folder = shared_data / "TotalSegmentator/tests/reference_files"
    crop, label, whole = (
        read_header(folder / f"{name}.nii.gz").geometry
        for name in ("example_ct_sm", "example_seg", "example_seg_fast_force_split")
    )
    assert crop.same_grid(label)
    assert not crop.same_grid(whole)
    # The crop is the whole from slice 82 on, but its header says it begins where the whole does.
    ct = read_volume(folder / "example_ct.nii.gz")
    small = read_volume(folder / "example_ct_sm.nii.gz")
    assert np.array_equal(ct.voxels[:, :, 82:112], small.voxels)
    assert np.allclose(ct.geometry.matrix, small.geometry.matrix)


def test_a_label_stored_the_other_way_round_lies_on_the_same_canonical_grid(
    shared_data: Path,
) -> None:
    folder = shared_data / "TotalSegmentator/tests/reference_files/aorta_report/test_result/models"
    ct = read_header(folder / "ct_cropped.nii.gz").geometry
    assert ct.axis_codes == "LPS"
    assert ct.same_grid(read_header(folder / "aorta.nii.gz").geometry)
    assert ct.canonical().axis_codes == "RAS"


def diagonal(shape: tuple[int, int, int], *spacing_mm: float) -> VolumeGeometry:
    return VolumeGeometry.from_array(shape, np.diag([*spacing_mm, 1.0]))


@pytest.mark.parametrize(
    "geometry",
    [
        diagonal((512, 512, 4000), 1.95, 1.95, 0.5),  # a whole body, 1 m wide and 2 m long
        diagonal((4000, 512, 512), 0.5, 1.95, 1.95),
        diagonal((1000, 1000, 1000), 0.02, 0.02, 0.02),  # a mouse
        diagonal((1, 1, 1), 0.001, 0.001, 0.001),
    ],
    ids=str,
)
def test_what_scanners_make_is_bounded(geometry: VolumeGeometry) -> None:
    geometry.require_bounded([(1.5, 1.5, 1.5), (5.0, 5.0, 5.0)], case="case")


@pytest.mark.parametrize(
    "geometry",
    [
        diagonal((32, 32, 8), 100.0, 100.0, 100.0),
        diagonal((64, 64, 4), 100.0, 100.0, 100.0),
        diagonal((1, 1, 32767), 1.0, 1.0, 100.0),
        diagonal((512, 512, 100), 0.7, 0.7, 100.0),
    ],
    ids=str,
)
def test_few_voxels_of_an_absurd_spacing_are_refused_with_it(geometry: VolumeGeometry) -> None:
    with pytest.raises(LimitExceeded, match=r"case: .*2500 mm.*100 mm.*correct the spacing"):
        geometry.require_bounded(case="case")


def test_voxels_are_bounded_on_every_model_grid() -> None:
    abdomen = diagonal((512, 512, 400), 0.8, 0.8, 1.0)
    abdomen.require_bounded([(1.5, 1.5, 1.5)])
    with pytest.raises(LimitExceeded, match=r"0.2×0.2×0.2 mm.*2048×2048×2000.*0.8×0.8×1 mm"):
        abdomen.require_bounded([(1.5, 1.5, 1.5), (0.2, 0.2, 0.2)])
