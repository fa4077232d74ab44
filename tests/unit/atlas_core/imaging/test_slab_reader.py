"""Slabs in, slabs out: equal to the whole volume for every orientation, in bounded memory."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from atlas_core.errors import CorruptFile, InvalidInput, LimitExceeded, UnsupportedVolume
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import (
    SlabReader,
    SlabWriter,
    VoxelCoding,
    open_slabs,
    read_header,
    read_volume,
    spool_slabs,
    write_volume,
)
from numpy.typing import NDArray

CANONICAL = VolumeGeometry.from_array(
    (7, 6, 9), np.array([[0.8, 0, 0, -90.0], [0, 0.7, 0, -40.0], [0, 0, 2.5, 12.0], [0, 0, 0, 1]])
)
ORIENTATIONS = [
    (axes, flips) for axes in permutations(range(3)) for flips in product((False, True), repeat=3)
]


def turned(
    voxels: NDArray[np.generic], axes: tuple[int, ...], flips: tuple[bool, ...]
) -> tuple[NDArray[np.generic], VolumeGeometry]:
    """Canonical voxels in another axis order: file axis ``n`` runs along canonical ``axes[n]``."""
    step = CANONICAL.matrix[:3, :3].copy()
    origin = CANONICAL.matrix[:3, 3].copy()
    for axis, back in enumerate(flips):
        if back:
            voxels = np.flip(voxels, axis)
            origin += step[:, axis] * (CANONICAL.shape[axis] - 1)
            step[:, axis] *= -1
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = step[:, axes], origin
    voxels = voxels.transpose(axes)
    return voxels, VolumeGeometry.from_array(voxels.shape, affine)


def values(dtype: str = "int16") -> NDArray[np.generic]:
    count = CANONICAL.voxels
    return (np.arange(count).reshape(CANONICAL.shape) % 251).astype(dtype)


def slabs(reader: SlabReader, size: int) -> NDArray[np.float32]:
    """The whole volume ``[z, y, x]``, slab by slab."""
    starts = range(0, reader.slices, size)
    return np.concatenate([reader.read(k, min(k + size, reader.slices)) for k in starts])


@pytest.mark.parametrize(("axes", "flips"), ORIENTATIONS)
def test_slabs_are_canonical_whatever_the_file_s_axis_order(
    tmp_path: Path, axes: tuple[int, ...], flips: tuple[bool, ...]
) -> None:
    voxels, geometry = turned(values(), axes, flips)
    write_volume(tmp_path / "v.nii.gz", voxels, geometry)
    expected = values().transpose(2, 1, 0)
    with open_slabs(tmp_path / "v.nii.gz") as reader:
        assert reader.geometry.same_grid(geometry)
        assert reader.canonical.same_grid(CANONICAL)
        for size in (1, 4, 9):
            assert np.array_equal(slabs(reader, size), expected)
        slab = reader.read(2, 5)
        assert slab.dtype == np.float32
        assert slab.flags.c_contiguous


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_slabs_equal_the_whole_volume_when_many_chunks_are_spooled(
    tmp_path: Path, axes: tuple[int, ...]
) -> None:
    """25 MB of float32: two chunks of the spool."""
    rng = np.random.default_rng(1)
    shape = tuple(np.array([160, 128, 320])[list(axes)])
    affine = np.eye(4)
    affine[:3, :3] = affine[:3, :3][:, axes]
    voxels = rng.integers(-1000, 1000, shape).astype(np.float32)
    geometry = VolumeGeometry.from_array(shape, affine)
    write_volume(tmp_path / "v.nii", voxels, geometry)
    volume = read_volume(tmp_path / "v.nii")
    expected = geometry.axis_map.to_canonical(volume.voxels).transpose(2, 1, 0)
    with open_slabs(tmp_path / "v.nii") as reader:
        assert np.array_equal(slabs(reader, 37), expected)
        with ThreadPoolExecutor(4) as pool:
            read = list(pool.map(lambda k: reader.read(k, k + 16), range(0, 320, 16)))
        assert np.array_equal(np.concatenate(read), expected)


@pytest.mark.parametrize(
    ("dtype", "slope", "intercept"),
    [("uint8", 1 / 136, 0.0), ("uint16", 1.0, -1024.0), ("float32", 0.5, 3.0), ("float64", 1, 0)],
)
def test_slabs_hold_the_values_that_a_whole_read_holds(
    dtype: str, slope: float, intercept: float
) -> None:
    stored = values(dtype)
    coding = VoxelCoding(np.dtype(dtype), slope, intercept)
    with spool_slabs(CANONICAL, coding, [stored.tobytes(order="F")]) as reader:
        expected = (stored.astype(np.float64) * slope + intercept).astype(np.float32)
        assert np.array_equal(reader.read(0, 9), expected.transpose(2, 1, 0))


def test_bytes_may_arrive_in_pieces_of_any_size() -> None:
    data = values().tobytes(order="F")
    for size in (1, 7, 100, len(data)):
        pieces = [b"", *(data[at : at + size] for at in range(0, len(data), size)), b""]
        with spool_slabs(CANONICAL, VoxelCoding(np.dtype("int16")), pieces) as reader:
            assert np.array_equal(reader.read(0, 9), values().transpose(2, 1, 0))


def test_bytes_that_do_not_fit_the_grid_are_refused() -> None:
    data = values().tobytes(order="F")
    coding = VoxelCoding(np.dtype("int16"))
    with pytest.raises(CorruptFile, match="too early"):
        spool_slabs(CANONICAL, coding, [data[:-1]])
    with pytest.raises(CorruptFile, match="more voxels"):
        spool_slabs(CANONICAL, coding, [data, bytes(5000)])


def test_damage_is_found_before_the_first_slab(tmp_path: Path) -> None:
    path = tmp_path / "v.nii.gz"
    write_volume(path, values(), CANONICAL)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptFile):
        open_slabs(path)
    bad = values("float32")
    bad[6, 5, 8] = np.nan
    with pytest.raises(UnsupportedVolume, match="1 of 378 voxels"):
        spool_slabs(CANONICAL, VoxelCoding(np.dtype("float32")), [bad.tobytes(order="F")])


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 3), (5, 4), (8, 10)])
def test_a_slab_outside_the_volume_is_refused(start: int, stop: int) -> None:
    data = values().tobytes(order="F")
    with (
        spool_slabs(CANONICAL, VoxelCoding(np.dtype("int16")), [data]) as reader,
        pytest.raises(InvalidInput, match="outside"),
    ):
        reader.read(start, stop)


def test_too_large_volumes_and_planes_are_refused(tmp_path: Path) -> None:
    write_volume(tmp_path / "v.nii.gz", values(), CANONICAL)
    with pytest.raises(LimitExceeded, match="378"):
        open_slabs(tmp_path / "v.nii.gz", max_voxels=377)
    wide = VolumeGeometry.from_array((20000, 20000, 1), np.eye(4))
    with pytest.raises(LimitExceeded, match="plane"):
        spool_slabs(wide, VoxelCoding(np.dtype("uint8")), [])


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
def test_memory_does_not_grow_with_the_volume(tmp_path: Path, axes: tuple[int, ...]) -> None:
    """A volume of 157 MB, read in slabs of 1 MB and written again, within 100 MB."""
    affine = np.eye(4)
    affine[:3, :3] = affine[:3, :3][:, axes]
    shape = tuple(int(n) for n in np.array([256, 256, 1200])[list(axes)])
    geometry = VolumeGeometry.from_array(shape, affine)
    plane = np.zeros(shape[:2], np.int16).tobytes()

    def planes() -> Iterator[bytes]:
        for _ in range(shape[2]):
            yield plane

    tracemalloc.start()
    try:
        coding = VoxelCoding(np.dtype("int16"))
        with (
            spool_slabs(geometry, coding, planes()) as reader,
            SlabWriter(tmp_path / "v.nii.gz", geometry, np.int16) as writer,
        ):
            axis = geometry.axis_map.source[2]
            for k in range(0, 1200, 4):
                slab = reader.read(k, k + 4).astype(np.int16).transpose(2, 1, 0)
                writer.write(axis, k, k + 4, geometry.axis_map.from_canonical(slab))
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()
    assert read_header(tmp_path / "v.nii.gz").geometry.same_grid(geometry)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from atlas_core.errors import Unavailable
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import SlabWriter, VoxelCoding, spool_slabs, write_volume

folder = Path(sys.argv[1])
voxels = np.random.default_rng(0).integers(0, 255, (100, 100, 300)).astype(np.uint8)
geometry = VolumeGeometry.from_array(voxels.shape, np.eye(4))
one = VolumeGeometry.from_array((100, 100, 1), np.eye(4))
write_volume(folder / "v.nii.gz", voxels[..., :1], one)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
for attempt in ("whole", "slabs", "spooled slabs"):
    try:
        if attempt == "whole":
            write_volume(folder / "v.nii.gz", voxels, geometry)
        else:
            with SlabWriter(folder / "v.nii.gz", geometry, np.uint8) as writer:
                axis = 2 if attempt == "slabs" else 1
                writer.write(axis, 0, voxels.shape[axis], voxels)
    except OSError:
        print("refused", attempt)
try:
    spool_slabs(geometry, VoxelCoding(np.dtype("uint8")), [voxels.tobytes(order="F")])
except Unavailable as error:
    print(error)
"""


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk."""
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert run.stdout.count("refused") == 3
    assert "TMPDIR" in run.stdout
    assert [file.name for file in tmp_path.iterdir()] == ["v.nii.gz"]
    assert read_volume(tmp_path / "v.nii.gz").voxels.shape == (100, 100, 1)


# Writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 5, 100])
@pytest.mark.parametrize("rising", [True, False])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_pieces_make_the_bytes_of_a_whole_write(
    tmp_path: Path, axis: int, rising: bool, size: int
) -> None:
    voxels = values("uint8")
    whole = write_volume(tmp_path / "whole.nii.gz", voxels, CANONICAL, slope=1 / 136)
    length = voxels.shape[axis]
    ranges = [(start, min(start + size, length)) for start in range(0, length, size)]
    with SlabWriter(tmp_path / "v.nii.gz", CANONICAL, np.uint8, slope=1 / 136) as writer:
        for start, stop in ranges if rising else reversed(ranges):
            writer.write(axis, start, stop, voxels.take(range(start, stop), axis))
    assert writer.sha256 == whole
    data = (tmp_path / "v.nii.gz").read_bytes()
    assert hashlib.sha256(data).hexdigest() == whole
    assert sorted(file.name for file in tmp_path.iterdir()) == ["v.nii.gz", "whole.nii.gz"]


def test_how_a_file_was_cut_does_not_show_in_its_bytes(tmp_path: Path) -> None:
    """5 MB: several blocks of the compressor, none of which ends with a piece."""
    voxels = np.random.default_rng(3).integers(0, 99, (150, 130, 260)).astype(np.uint8)
    geometry = VolumeGeometry.from_array(voxels.shape, np.eye(4))
    whole = write_volume(tmp_path / "whole.nii.gz", voxels, geometry)
    for axis, size in ((2, 1), (2, 17), (1, 50)):
        with SlabWriter(tmp_path / "v.nii.gz", geometry, np.uint8) as writer:
            for start in range(0, voxels.shape[axis], size):
                stop = min(start + size, voxels.shape[axis])
                writer.write(axis, start, stop, voxels.take(range(start, stop), axis))
        assert writer.sha256 == whole


@pytest.mark.parametrize("axis", [0, 2])
def test_an_unfinished_file_never_appears(tmp_path: Path, axis: int) -> None:
    path = tmp_path / "v.nii.gz"
    first = values("uint8").take(range(3), axis)
    with (
        pytest.raises(InvalidInput, match="incomplete"),
        SlabWriter(path, CANONICAL, np.uint8) as writer,
    ):
        writer.write(axis, 0, 3, first)
    with pytest.raises(KeyError), SlabWriter(path, CANONICAL, np.uint8) as writer:
        writer.write(axis, 0, 3, first)
        raise KeyError("the caller failed")
    with pytest.raises(InvalidInput, match="incomplete"), SlabWriter(path, CANONICAL, np.uint8):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("axis", "start", "stop", "shape", "dtype"),
    [
        (2, 4, 6, (7, 6, 2), "uint8"),  # a gap
        (2, 0, 3, (7, 6, 3), "uint8"),  # again
        (1, 3, 5, (7, 2, 9), "uint8"),  # another axis
        (2, 3, 10, (7, 6, 7), "uint8"),  # beyond the end
        (2, 3, 5, (6, 7, 2), "uint8"),  # turned
        (2, 3, 5, (7, 6, 2), "int16"),  # another type
        (3, 3, 5, (7, 6, 2), "uint8"),  # no such axis
    ],
)
def test_pieces_that_do_not_fit_are_refused(
    tmp_path: Path, axis: int, start: int, stop: int, shape: tuple[int, int, int], dtype: str
) -> None:
    with pytest.raises(InvalidInput), SlabWriter(tmp_path / "v.nii", CANONICAL, "uint8") as writer:
        writer.write(2, 0, 3, np.zeros((7, 6, 3), np.uint8))
        writer.write(axis, start, stop, np.zeros(shape, dtype))
    assert not list(tmp_path.iterdir())


# Real files -----------------------------------------------------------------------------------


def test_all_48_axis_codes_are_one_image_and_go_back(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "niivue/packages/niivue/tests/images/nifti_space"
    files = sorted(folder.glob("*.nii.gz"))
    assert len(files) == 48
    reference = None
    for path in files:
        volume = read_volume(path)
        assert volume.geometry.axis_codes == path.name[:3]
        axis_map = volume.geometry.axis_map
        canonical = axis_map.to_canonical(volume.voxels)
        with open_slabs(path) as reader:
            slab_wise = slabs(reader, 20).transpose(2, 1, 0)
            assert np.array_equal(slab_wise, canonical)
        if reference is None:
            reference = (canonical, volume.geometry.canonical())
        assert np.array_equal(canonical, reference[0])
        assert volume.geometry.canonical().same_grid(reference[1])
        back = axis_map.from_canonical(slab_wise).astype(volume.voxels.dtype)
        write_volume(tmp_path / "back.nii", back, volume.geometry)
        again = (tmp_path / "back.nii").read_bytes()[352:]
        assert again == volume.voxels.tobytes(order="F")
