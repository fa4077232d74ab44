"""NIfTI files: what is read equals what was written; what is unsound is refused, and nothing is
lost."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from atlas_core.errors import (
    AtlasError,
    CorruptFile,
    GridMismatch,
    InvalidInput,
    LimitExceeded,
    NotFound,
    UnsupportedVolume,
)
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import (
    ValueRange,
    content_sha256,
    content_sha256_of,
    read_header,
    read_label,
    read_label_values,
    read_pieces,
    read_volume,
    write_pieces,
    write_volume,
)
from isal import igzip
from numpy.typing import NDArray

SHAPE = (5, 4, 3)
AFFINE = np.array([[-0.8, 0, 0, 100.0], [0, -0.7, 0, 50.0], [0, 0, 2.5, -300.0], [0, 0, 0, 1]])
GEOMETRY = VolumeGeometry.from_array(SHAPE, AFFINE)
Change = Callable[[nib.Nifti1Header], None]


def numbers(dtype: str = "int16") -> NDArray[np.generic]:
    """Distinct values that every real type of one byte or more can hold."""
    return np.arange(60).reshape(SHAPE, order="F").astype(dtype)


def nifti(
    voxels: NDArray[np.generic],
    affine: NDArray[np.float64] | None = AFFINE,
    change: Change = lambda header: None,
    kind: type = nib.Nifti1Header,
    order: str = "<",
) -> bytes:
    """Bytes of a ``.nii`` file, written without the code under test."""
    header = kind(endianness=order)
    header.set_data_dtype(voxels.dtype)
    header.set_data_shape(voxels.shape)
    if affine is not None:
        header.set_sform(affine, code=1)
    header["magic"] = b"n+1" if kind is nib.Nifti1Header else b"n+2"
    header["vox_offset"] = header.sizeof_hdr + 4
    change(header)
    data = voxels.astype(voxels.dtype.newbyteorder(order)).tobytes(order="F")
    return bytes(header.binaryblock) + bytes(4) + data


def stored(folder: Path, data: bytes, name: str = "v.nii") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def setting(**fields: object) -> Change:
    """A header change: raw fields, past every check of nibabel."""

    def change(header: nib.Nifti1Header) -> None:
        for name, value in fields.items():
            header[name] = value

    return change


# What is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "float32"])
def test_a_written_volume_reads_back_unchanged(tmp_path: Path, dtype: str, suffix: str) -> None:
    path = tmp_path / f"v{suffix}"
    write_volume(path, numbers(dtype), GEOMETRY)
    volume = read_volume(path)
    assert volume.voxels.dtype == dtype
    assert np.array_equal(volume.voxels, numbers(dtype))
    assert volume.geometry.same_grid(GEOMETRY)
    assert read_header(path).compressed == (suffix == ".nii.gz")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [nib.Nifti1Header, nib.Nifti2Header])
@pytest.mark.parametrize(
    ("dtype", "read_as"),
    [
        ("uint8", "uint8"), ("int8", "int8"), ("int16", "int16"), ("uint16", "uint16"),
        ("int32", "int32"), ("uint32", "int32"), ("int64", "int32"), ("uint64", "int32"),
        ("float32", "float32"), ("float64", "float32"),
    ],
)  # fmt: skip
def test_every_number_format_is_read(
    tmp_path: Path, dtype: str, read_as: str, kind: type, order: str
) -> None:
    path = stored(tmp_path, nifti(numbers(dtype), kind=kind, order=order))
    volume = read_volume(path)
    assert volume.voxels.dtype == np.dtype(read_as)
    assert volume.voxels.dtype.isnative
    assert np.array_equal(volume.voxels, numbers(dtype))
    assert volume.geometry.same_grid(GEOMETRY)


def test_voxels_come_in_the_memory_order_of_the_file(tmp_path: Path) -> None:
    assert read_volume(stored(tmp_path, nifti(numbers()))).voxels.flags.f_contiguous


@pytest.mark.parametrize(
    ("dtype", "slope", "intercept", "read_as"),
    [
        ("uint16", 1.0, -1024.0, "int16"),  # Hounsfield units as scanners store them
        ("int16", 1000.0, 0.0, "int32"),  # too large for int16
        ("int16", 0.5, 0.0, "float32"),
        ("float32", 2.0, 1.0, "float32"),
        ("uint8", 1 / 136, 0.0, "float32"),  # attention maps
        ("int16", 0.0, 7.0, "int16"),  # slope 0: the standard's "not scaled"
        ("int16", np.nan, np.nan, "int16"),  # nibabel's "not scaled"
    ],
)
def test_slope_and_intercept_are_applied(
    tmp_path: Path, dtype: str, slope: float, intercept: float, read_as: str
) -> None:
    path = stored(
        tmp_path, nifti(numbers(dtype), change=setting(scl_slope=slope, scl_inter=intercept))
    )
    volume = read_volume(path)
    expected = numbers(dtype).astype(np.float64)
    if slope and np.isfinite(slope):
        expected = expected * np.float32(slope) + intercept
    assert volume.voxels.dtype == read_as
    assert np.allclose(volume.voxels, expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32"])
def test_pieces_of_any_size_are_the_volume(tmp_path: Path, dtype: str) -> None:
    """Read in pieces, written in pieces, and hashed in pieces."""
    path = stored(tmp_path, nifti(numbers(dtype)))
    whole = read_volume(path)
    values = ValueRange()
    for size in (1, 7, 60, 1000):
        pieces = [piece.copy() for piece in read_pieces(path, piece_voxels=size)]
        np.testing.assert_array_equal(np.concatenate(pieces), whole.voxels.ravel(order="F"))
        for piece in pieces:
            values.add(piece)
        assert content_sha256_of(GEOMETRY, values.narrowest, pieces) == content_sha256(whole)
        written = write_pieces(tmp_path / "pieces.nii.gz", pieces, GEOMETRY, dtype)
        assert written == write_volume(tmp_path / "whole.nii.gz", whole.voxels, GEOMETRY)


def test_fewer_or_more_voxels_than_the_grid_has_are_not_written(tmp_path: Path) -> None:
    for count in (59, 61):
        with pytest.raises(InvalidInput, match="incomplete"):
            write_pieces(tmp_path / "v.nii.gz", [np.zeros(count, np.uint8)], GEOMETRY, np.uint8)
    assert not list(tmp_path.iterdir())


def test_what_reading_never_ends_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.nii")
    (tmp_path / "zeros.nii").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe.nii", tmp_path / "zeros.nii", tmp_path):
        with pytest.raises(NotFound, match="not a regular file"):
            read_volume(path)


def test_a_label_of_noise_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 1 << 30, (128, 128, 16)).astype(np.int32)
    write_volume(tmp_path / "noise.nii.gz", noise, VolumeGeometry.from_array(noise.shape, AFFINE))
    for read in (read_label, read_label_values):
        with pytest.raises(UnsupportedVolume, match="distinct values"):
            read(tmp_path / "noise.nii.gz")


def test_compression_is_detected_by_content_not_by_name(tmp_path: Path) -> None:
    path = stored(tmp_path, gzip.compress(nifti(numbers())), "really_gzip.nii")
    assert read_header(path).compressed
    assert np.array_equal(read_volume(path).voxels, numbers())
    plain = stored(tmp_path, nifti(numbers()), "really_plain.nii.gz")
    assert np.array_equal(read_volume(plain).voxels, numbers())


def test_a_gzip_file_of_several_members_is_one_volume(tmp_path: Path) -> None:
    data = nifti(numbers())
    path = stored(tmp_path, gzip.compress(data[:400]) + gzip.compress(data[400:]))
    assert np.array_equal(read_volume(path).voxels, numbers())


def test_header_extensions_are_skipped(tmp_path: Path) -> None:
    data = nifti(numbers(), change=setting(vox_offset=352 + 32))
    path = stored(
        tmp_path, data[:348] + b"\1\0\0\0" + b"\x20\0\0\0\6\0\0\0" + bytes(24) + data[352:]
    )
    assert np.array_equal(read_volume(path).voxels, numbers())


def test_trailing_axes_of_one_voxel_are_dropped(tmp_path: Path) -> None:
    path = stored(tmp_path, nifti(numbers().reshape(*SHAPE, 1, 1)))
    assert read_volume(path).voxels.shape == SHAPE


def test_padding_behind_the_voxels_is_ignored(tmp_path: Path) -> None:
    path = stored(tmp_path, nifti(numbers()) + bytes(512))
    assert np.array_equal(read_volume(path).voxels, numbers())


def test_a_volume_larger_than_the_first_allocation_is_read_whole(tmp_path: Path) -> None:
    voxels = np.zeros((1024, 1024, 70), np.uint8, order="F")
    voxels[-1, -1, :] = np.arange(70)
    geometry = VolumeGeometry.from_array(voxels.shape, np.eye(4))
    write_volume(tmp_path / "v.nii.gz", voxels, geometry)
    assert np.array_equal(read_volume(tmp_path / "v.nii.gz").voxels, voxels)


# Where it lies --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "factor"), [(0, 1.0), (1, 1000.0), (2, 1.0), (3, 0.001), (10, 1.0)]
)
def test_lengths_are_converted_to_millimetres(tmp_path: Path, code: int, factor: float) -> None:
    scaled = np.diag([1 / factor] * 3 + [1.0]) @ AFFINE
    path = stored(tmp_path, nifti(numbers(), scaled, setting(xyzt_units=code)))
    assert read_header(path).geometry.same_grid(GEOMETRY)


def test_an_unknown_unit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedVolume, match="unit"):
        read_header(stored(tmp_path, nifti(numbers(), change=setting(xyzt_units=5))))


def test_the_qform_counts_where_there_is_no_sform(tmp_path: Path) -> None:
    path = stored(tmp_path, nifti(numbers(), None, lambda header: header.set_qform(AFFINE, code=1)))
    assert read_header(path).geometry.same_grid(GEOMETRY)


def test_a_missing_affine_is_refused_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedVolume, match="affine is missing") as error:
        read_header(stored(tmp_path, nifti(numbers(), None)))
    assert error.value.remedy


def test_sform_and_qform_that_disagree_are_pointed_out(tmp_path: Path) -> None:
    moved = AFFINE.copy()
    moved[0, 3] += 30

    def both(header: nib.Nifti1Header) -> None:
        header.set_qform(moved, code=1)

    info = read_header(stored(tmp_path, nifti(numbers(), change=both)))
    assert info.geometry.same_grid(GEOMETRY)
    assert "30.0 mm" in info.warnings[0]


def test_a_broken_qform_counts_only_without_an_sform(tmp_path: Path) -> None:
    broken = setting(qform_code=1, quatern_b=3.0, quatern_c=3.0, quatern_d=3.0)
    assert read_header(stored(tmp_path, nifti(numbers(), change=broken))).geometry.same_grid(
        GEOMETRY
    )
    with pytest.raises(UnsupportedVolume, match="qform"):
        read_header(stored(tmp_path, nifti(numbers(), None, broken)))


@pytest.mark.parametrize(
    "affine",
    [
        np.diag([np.nan, 1, 1, 1]), np.diag([np.inf, 1, 1, 1]), np.diag([0.0, 1, 1, 1]),
        np.diag([1e-9, 1, 1, 1]), np.diag([1e6, 1, 1, 1]),
        np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
    ],
)  # fmt: skip
def test_a_degenerate_affine_is_refused(tmp_path: Path, affine: NDArray[np.float64]) -> None:
    with pytest.raises(UnsupportedVolume, match="affine"):
        read_header(stored(tmp_path, nifti(numbers(), affine)))


@pytest.mark.parametrize(
    "affine",
    [
        nib.affines.from_matvec(
            nib.eulerangles.euler2mat(0.3, -0.2, 0.1) @ np.diag([0.8, 0.8, 3]), [1, 2, 3]
        ),
        np.array([[0.5, 0.05, 0, 1], [0, 0.5, 0.15, 2], [0, 0, 2.4, 3], [0, 0, 0, 1.0]]),
    ],
    ids=["oblique", "sheared"],
)
def test_oblique_and_sheared_grids_survive(tmp_path: Path, affine: NDArray[np.float64]) -> None:
    geometry = VolumeGeometry.from_array(SHAPE, affine)
    write_volume(tmp_path / "v.nii", numbers(), geometry)
    assert read_header(tmp_path / "v.nii").geometry.same_grid(geometry)
    assert read_header(tmp_path / "v.nii").warnings == ()
    assert np.allclose(nib.load(tmp_path / "v.nii").affine, affine, atol=1e-5)


# What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 4, 3, 2), (5, 4, 3, 1, 2), (5, 4), (5,)])
def test_what_has_not_three_axes_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    voxels = np.zeros(shape, np.int16)
    with pytest.raises(UnsupportedVolume, match="axes"):
        read_header(stored(tmp_path, nifti(voxels)))


@pytest.mark.parametrize(
    ("code", "name"), [(128, "RGB24"), (2304, "RGBA32"), (32, "complex64"), (1, "1-bit"), (9, "9")]
)
def test_voxels_that_are_not_numbers_are_refused(tmp_path: Path, code: int, name: str) -> None:
    with pytest.raises(UnsupportedVolume, match=name):
        read_header(stored(tmp_path, nifti(numbers(), change=setting(datatype=code))))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_and_counted(tmp_path: Path, bad: float) -> None:
    voxels = numbers("float32").copy()
    voxels[0, :2, 0] = bad
    with pytest.raises(UnsupportedVolume, match="2 of 60 voxels"):
        read_volume(stored(tmp_path, nifti(voxels)))


def test_a_float64_beyond_float32_is_refused(tmp_path: Path) -> None:
    voxels = numbers("float64").copy()
    voxels[0, 0, 0] = 1e300
    with pytest.raises(UnsupportedVolume, match="1 of 60 voxels"):
        read_volume(stored(tmp_path, nifti(voxels)))


def test_an_integer_beyond_32_bits_is_refused(tmp_path: Path) -> None:
    voxels = numbers("int64").copy()
    voxels[0, 0, 0] = 1 << 40
    with pytest.raises(UnsupportedVolume, match="32 bits"):
        read_volume(stored(tmp_path, nifti(voxels)))


@pytest.mark.parametrize("data", [b"", b"\x1f", b"\x1f\x8b", b"abc", bytes(347)])
def test_less_than_a_header_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(AtlasError):
        read_header(stored(tmp_path, data))


@pytest.mark.parametrize(
    "data",
    # No time in the gzip header: the data names the test, and every process must agree on it.
    [b"\x89PNG\r\n" + bytes(500), b"patient,age\n" * 50, gzip.compress(b"text" * 200, mtime=0)],
)
def test_other_files_are_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(UnsupportedVolume, match="not a NIfTI file"):
        read_header(stored(tmp_path, data))


@pytest.mark.parametrize("magic", [b"ni1", b"", b"xyz"])
def test_header_pairs_and_analyze_are_refused(tmp_path: Path, magic: bytes) -> None:
    with pytest.raises(UnsupportedVolume, match="convert"):
        read_header(stored(tmp_path, nifti(numbers(), change=setting(magic=magic))))


def test_a_missing_file_and_a_folder_are_distinguished_from_damage(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.nii.gz", tmp_path):
        with pytest.raises(NotFound):
            read_volume(path)


@pytest.mark.parametrize("offset", [np.nan, np.inf, -8.0, 100.0, 352.5, 1e12])
def test_an_impossible_voxel_position_is_refused(tmp_path: Path, offset: float) -> None:
    with pytest.raises(CorruptFile, match="position"):
        read_header(stored(tmp_path, nifti(numbers(), change=setting(vox_offset=offset))))


@pytest.mark.parametrize("dim", [[0, 5, 4, 3], [9, 5, 4, 3], [3, 0, 4, 3], [3, 5, -4, 3]])
def test_impossible_axes_are_refused(tmp_path: Path, dim: list[int]) -> None:
    with pytest.raises(CorruptFile, match=r"ax[ei]s"):
        read_header(stored(tmp_path, nifti(numbers(), change=setting(dim=dim + [1] * 4))))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_file_truncated_anywhere_is_corrupt(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"v{suffix}"
    write_volume(path, numbers(), GEOMETRY)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptFile):
            read_volume(path)
        with pytest.raises(CorruptFile):
            read_label(path)


def test_damaged_gzip_never_yields_other_voxels(tmp_path: Path) -> None:
    path = tmp_path / "v.nii.gz"
    rng = np.random.default_rng(7)
    voxels = rng.integers(-1000, 1000, SHAPE).astype(np.int16)
    write_volume(path, voxels, GEOMETRY)
    whole = path.read_bytes()
    refused = 0
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0x55
        path.write_bytes(bytes(damaged))
        try:
            assert np.array_equal(read_volume(path).voxels, voxels)  # e.g. gzip's time stamp
        except AtlasError:
            refused += 1
    assert refused > len(whole) - 10


# A header is not believed ---------------------------------------------------------------------


def peak_bytes(path: Path, error: type[AtlasError]) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(error):
            read_volume(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_more_voxels_than_the_limit_are_refused(tmp_path: Path) -> None:
    path = stored(tmp_path, nifti(numbers()))
    with pytest.raises(LimitExceeded, match="60"):
        read_volume(path, max_voxels=59)
    assert read_volume(path, max_voxels=60).voxels.size == 60


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_absurd_sizes_are_refused_without_allocating(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    claim = setting(dim=[3, 30000, 30000, 30000, 1, 1, 1, 1])
    path = stored(tmp_path, compress(nifti(numbers(), change=claim)))
    assert peak_bytes(path, CorruptFile) < 1 << 24
    claim = setting(dim=[3, 900, 900, 900, 1, 1, 1, 1])
    path = stored(tmp_path, compress(nifti(numbers(), change=claim)))
    assert peak_bytes(path, CorruptFile) < 1 << 24


def test_a_plausible_lie_costs_no_more_than_the_bytes_that_came(tmp_path: Path) -> None:
    """The file could hold 1.4 GB if it were zeros; it ends after a few MB."""
    lie = nifti(numbers(), change=setting(dim=[3, 900, 900, 900, 1, 1, 1, 1]))
    noise = np.random.default_rng(0).bytes(4 << 20)
    path = stored(tmp_path, igzip.compress(lie + noise))
    assert peak_bytes(path, CorruptFile) < 150 << 20


def test_a_gzip_bomb_behind_a_small_header_is_stopped(tmp_path: Path) -> None:
    path = stored(tmp_path, igzip.compress(nifti(numbers()) + bytes(200 << 20)))
    assert peak_bytes(path, CorruptFile) < 1 << 26


# What is written ------------------------------------------------------------------------------


def test_equal_volumes_give_equal_bytes_and_the_named_checksum(tmp_path: Path) -> None:
    first = write_volume(tmp_path / "one.nii.gz", np.asfortranarray(numbers()), GEOMETRY)
    second = write_volume(tmp_path / "two.nii.gz", np.ascontiguousarray(numbers()), GEOMETRY)
    data = (tmp_path / "one.nii.gz").read_bytes()
    assert data == (tmp_path / "two.nii.gz").read_bytes()
    assert first == second == hashlib.sha256(data).hexdigest()


def test_nothing_but_geometry_and_numbers_is_written(tmp_path: Path) -> None:
    write_volume(tmp_path / "v.nii.gz", numbers(), GEOMETRY, slope=1 / 136)
    packed = (tmp_path / "v.nii.gz").read_bytes()
    assert packed[3] == 0  # no file name, comment or extra field in the gzip header
    assert packed[4:8] == bytes(4)  # no time
    header = nib.Nifti1Header(gzip.decompress(packed)[:348], check=False)
    for free_text in ("descrip", "aux_file", "intent_name", "db_name", "data_type"):
        assert bytes(header[free_text]).strip(b"\0") == b""
    assert header["scl_slope"] == np.float32(1 / 136)
    assert header["scl_inter"] == 0
    assert int(header["sform_code"]) == int(header["qform_code"]) == 1
    assert header.get_xyzt_units()[0] == "mm"


def test_other_readers_read_what_is_written(tmp_path: Path) -> None:
    write_volume(tmp_path / "v.nii.gz", numbers(), GEOMETRY)
    image = nib.load(tmp_path / "v.nii.gz")
    assert np.array_equal(np.asarray(image.dataobj), numbers())
    assert np.allclose(image.get_qform(), AFFINE, atol=1e-4)
    assert np.allclose(image.get_sform(), AFFINE, atol=1e-4)


def test_masks_of_booleans_are_written_as_bytes(tmp_path: Path) -> None:
    write_volume(tmp_path / "v.nii.gz", numbers() > 30, GEOMETRY)
    label = read_label(tmp_path / "v.nii.gz")
    assert label.voxels.dtype == np.uint8
    assert np.array_equal(label.voxels, numbers() > 30)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "v.nii.gz"
    write_volume(path, numbers("float32"), GEOMETRY)
    before = path.read_bytes()
    bad = numbers("float32").copy()
    bad[2, 2, 2] = np.nan
    with pytest.raises(InvalidInput, match="NaN"):
        write_volume(path, bad, GEOMETRY)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["v.nii.gz"]


def test_what_cannot_be_written_is_refused_before_a_file_appears(tmp_path: Path) -> None:
    path = tmp_path / "v.nii.gz"
    with pytest.raises(InvalidInput, match="float64"):
        write_volume(path, numbers("float64"), GEOMETRY)
    with pytest.raises(GridMismatch):
        write_volume(path, numbers()[1:], GEOMETRY)
    long = np.zeros((40000, 1, 1), np.uint8)
    with pytest.raises(LimitExceeded, match="32767"):
        write_volume(path, long, VolumeGeometry.from_array(long.shape, np.eye(4)))
    assert not list(tmp_path.iterdir())


# Labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "int64", "float32", "float64"])
def test_labels_are_bytes_where_their_values_allow(tmp_path: Path, dtype: str) -> None:
    voxels = np.zeros(SHAPE, dtype)
    voxels[0, 0, 0], voxels[1, 0, 0] = 9, 117
    label = read_label(stored(tmp_path, nifti(voxels)))
    assert label.voxels.dtype == np.uint8
    assert label.values == (0, 9, 117)
    assert np.array_equal(label.voxels, voxels)


@pytest.mark.parametrize("values", [(-1, 5), (0, 300), (-70000, 2_000_000)])
def test_labels_beyond_a_byte_keep_their_values(tmp_path: Path, values: tuple[int, int]) -> None:
    voxels = np.full(SHAPE, values[0], np.int32)
    voxels[0, 0, 0] = values[1]
    label = read_label(stored(tmp_path, nifti(voxels)))
    assert label.values == values
    assert np.array_equal(label.voxels, voxels)


def test_a_label_of_fractions_is_refused(tmp_path: Path) -> None:
    voxels = np.zeros(SHAPE, np.float32)
    voxels[0, :3, 0] = 0.5
    with pytest.raises(UnsupportedVolume, match="3 voxels of the label are not whole numbers"):
        read_label(stored(tmp_path, nifti(voxels)))


def test_a_label_beyond_32_bits_is_refused(tmp_path: Path) -> None:
    voxels = np.zeros(SHAPE, np.float32)
    voxels[0, 0, 0] = 1e30
    with pytest.raises(UnsupportedVolume, match="32 bits"):
        read_label(stored(tmp_path, nifti(voxels)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", ["int16", "float32", "uint8", "float64"])
def test_no_header_however_damaged_raises_anything_but_domain_errors(
    tmp_path: Path, dtype: str
) -> None:
    rng = np.random.default_rng(11)
    whole = nifti(numbers(dtype))
    for _ in range(400):
        damaged = bytearray(whole)
        for position in rng.integers(0, 352, rng.integers(1, 6)):
            damaged[position] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)])
        path = stored(tmp_path, bytes(damaged))
        for read in (read_volume, read_label):
            with contextlib.suppress(AtlasError):
                read(path)


# Real files -----------------------------------------------------------------------------------


def test_real_refusals(shared_data: Path) -> None:
    with pytest.raises(UnsupportedVolume, match="128×96×24×2"):
        read_header(shared_data / "nibabel/nibabel/tests/data/example4d.nii.gz")
    with pytest.raises(UnsupportedVolume, match="RGB24"):
        read_header(shared_data / "niivue/packages/niivue/demos/images/ct_perfusion.nii.gz")


def test_real_volumes_equal_what_nibabel_reads(shared_data: Path) -> None:
    reference = shared_data / "TotalSegmentator/tests/reference_files"
    for path in (
        reference / "example_ct.nii.gz",
        reference / "example_ct_sm.nii.gz",
        reference / "aorta_report/test_result/models/ct_cropped.nii.gz",
        shared_data / "niivue/packages/niivue/demos/images/shear.nii.gz",
        shared_data / "niivue-demo-images/CT_AVM.nii.gz",
        shared_data / "niivue-demo-images/CT_pitch.nii.gz",
        shared_data / "kits19/data/case_00072/segmentation.nii.gz",
    ):
        volume, image = read_volume(path), nib.load(path)
        assert np.allclose(volume.voxels, np.asarray(image.dataobj), rtol=1e-6), path.name
        assert np.allclose(volume.geometry.matrix, image.affine), path.name
        assert volume.geometry.axis_codes == "".join(nib.aff2axcodes(image.affine)), path.name
