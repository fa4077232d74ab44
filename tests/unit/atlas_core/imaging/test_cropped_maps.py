"""Maps cropped to what is not zero: what was written is read, at its place, in every axis order."""

from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from atlas_core.errors import CorruptFile, GridMismatch
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import (
    CroppedMapReader,
    CroppedMapsWriter,
    read_cropped,
    read_header,
    write_volume,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

SHAPE = (19, 14, 23)
TURNED = np.array([[0.0, -0.8, 0.6], [-1.0, 0.0, 0.0], [0.0, -0.6, -0.8]])
OBLIQUE = nib.affines.from_matvec(TURNED * [0.8, 0.9, 2.5], [40, -7, 90])
GRID = VolumeGeometry.from_array(SHAPE, OBLIQUE)


def a_map(seed: int, voxels: int) -> NDArray[np.uint8]:
    """Some blobs and specks."""
    random = np.random.default_rng(seed)
    volume = np.zeros(SHAPE, np.uint8)
    for _ in range(voxels):
        at = tuple(slice(a, a + random.integers(1, 4)) for a in random.integers(0, SHAPE))
        volume[at] = random.integers(1, 255)
    return volume


def write(folder: Path, volume: NDArray[np.uint8], axis: int, edges: list[int]) -> dict[Path, str]:
    with CroppedMapsWriter(folder, GRID, slope=1 / 136) as writer:
        for start, stop in pairwise(edges):
            low, high = sorted((start, stop))
            at = tuple(low if a == axis else 0 for a in range(3))
            writer.add(folder / "map.nii.gz", at, volume.take(range(low, high), axis))
        return writer.finish()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), voxels=st.integers(0, 4), axis=st.sampled_from((0, 1, 2)),
       step=st.integers(1, 9), rising=st.booleans(), at=st.integers(1, 23))  # fmt: skip
def test_what_was_written_is_read_whole_and_slab_by_slab(
    tmp_path_factory, seed, voxels, axis, step, rising, at
):
    folder = tmp_path_factory.mktemp("maps")
    volume = a_map(seed, voxels)
    edges = [*range(0, SHAPE[axis], step), SHAPE[axis]]
    written = write(folder, volume, axis, edges if rising else edges[::-1])
    path = folder / "map.nii.gz"
    assert list(folder.iterdir()) == list(written) == ([path] if volume.any() else [])
    if not volume.any():
        return
    box = read_header(path).geometry
    assert np.prod(box.shape) <= volume.size and read_header(path).slope == np.float32(1 / 136)
    assert (read_cropped(path, GRID) == volume).all()
    reader, out = CroppedMapReader(path, GRID), np.zeros(SHAPE, np.uint8)
    for start in range(0, SHAPE[2], at):
        stop = min(SHAPE[2], start + at)
        reader.read_into(start, stop, out[..., start:stop])
    assert (out == volume).all()


def test_the_box_is_tight_and_stock_tools_see_every_voxel_in_its_place(tmp_path):
    volume = np.zeros(SHAPE, np.uint8)
    volume[5:9, 3, 7:20], volume[6, 11, 9] = 68, 136
    write(tmp_path, volume, 2, [0, 8, 10, 23])
    path = tmp_path / "map.nii.gz"
    assert read_header(path).geometry.shape == (4, 9, 13)
    loaded = nib.load(path)
    inside = np.argwhere(loaded.get_fdata() > 0)
    apart = nib.affines.apply_affine(loaded.affine, inside) - nib.affines.apply_affine(
        OBLIQUE, np.argwhere(volume)
    )
    assert np.abs(apart).max() < 1e-3
    assert loaded.get_fdata().sum() == pytest.approx(volume.sum() / 136)
    write_volume(tmp_path / "ct.nii.gz", np.zeros(SHAPE, np.int16), GRID)
    ct = sitk.ReadImage(str(tmp_path / "ct.nii.gz"))
    on_ct = sitk.Resample(sitk.ReadImage(str(path)), ct, sitk.Transform(), sitk.sitkNearestNeighbor)
    assert np.allclose(sitk.GetArrayFromImage(on_ct).T * 136, volume, atol=1e-3)


def test_a_map_of_the_whole_grid_reads_as_it_always_did(tmp_path):
    volume = a_map(3, 2)
    write_volume(tmp_path / "map.nii.gz", volume, GRID)
    assert (read_cropped(tmp_path / "map.nii.gz", GRID) == volume).all()


def test_many_maps_need_one_file_at_a_time_and_fail_without_a_trace(tmp_path):
    volume = a_map(1, 3)
    with CroppedMapsWriter(tmp_path, GRID) as writer:
        before = len(list(Path("/proc/self/fd").iterdir()))
        for number in range(117):
            writer.add(tmp_path / f"{number}.nii.gz", (0, 0, 0), volume)
        assert len(list(Path("/proc/self/fd").iterdir())) == before
        assert len(set(writer.finish().values())) == 1
    with pytest.raises(FileNotFoundError), CroppedMapsWriter(tmp_path, GRID) as writer:
        writer.add(tmp_path / "missing" / "map.nii.gz", (0, 0, 0), volume)
        writer.finish()
    assert len(list(tmp_path.iterdir())) == 117


def test_a_map_of_another_grid_or_a_damaged_one_is_refused(tmp_path):
    path = tmp_path / "map.nii.gz"
    elsewhere = VolumeGeometry.from_array((4, 4, 4), GRID.cropped((17, 3, 3), (1, 1, 1)).matrix)
    between = GRID.matrix.copy()
    between[:3, 3] += GRID.matrix[:3, 0] / 2
    coarse = GRID.matrix @ np.diag([2.0, 2, 2, 1])
    for geometry in (
        elsewhere,
        VolumeGeometry.from_array((4, 4, 4), between),
        VolumeGeometry.from_array((4, 4, 4), coarse),
    ):
        write_volume(path, np.ones((4, 4, 4), np.uint8), geometry)
        with pytest.raises(GridMismatch, match="grid of CT"):
            read_cropped(path, GRID)
        with pytest.raises(GridMismatch):
            CroppedMapReader(path, GRID)
    write(tmp_path, a_map(5, 4), 2, [0, 23])
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CorruptFile):
        CroppedMapReader(path, GRID).read_into(0, 23, np.zeros(SHAPE, np.uint8))
