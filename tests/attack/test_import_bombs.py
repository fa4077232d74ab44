"""What is small on disk and enormous in memory, and CTs that are just long: imported in little
memory, or refused in little."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from atlas_core.geometry import VolumeGeometry
from atlas_core.importing import ImportSummary
from bombs import write_planes
from child_processes import PATIENCE_S, SPAWN, import_in_little_memory, start
from dicom_series import write_series
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless

LIMIT_MIB = 150
"""For two workers, whatever they import: less than one volume of `GRID`."""

LIMIT_WITH_BOMBS_MIB = 400
"""The sides of kidneys that fill the whole CT need most."""

GRID = VolumeGeometry.from_array((512, 512, 400), np.diag([0.75, 0.75, 0.8, 1.0]))
"""200 MiB of int16, 400 MiB of float32: chest and abdomen in thin slices."""

QUARTER = VolumeGeometry.from_array((512, 512, 100), GRID.matrix)

SMALL = VolumeGeometry.from_array((32, 32, 8), np.diag([4.0, 4.0, 4.0, 1.0]))


def body(grid: VolumeGeometry, fraction: float = 0.0) -> Callable[[int], NDArray[np.float64]]:
    """Planes of soft tissue in air, all different."""
    columns, rows, _ = grid.shape
    plane = np.full((columns, rows), -1000.0)
    plane[columns // 4 : -columns // 4, rows // 4 : -rows // 4] = 40.0

    def one(k: int) -> NDArray[np.float64]:
        plane[columns // 2, rows // 2] = k + fraction
        return plane

    return one


def kidneys(k: int) -> NDArray[np.uint8]:
    plane = np.zeros(GRID.shape[:2], np.uint8)
    if 200 <= k < 300:
        plane[150:200, 250:300] = plane[320:370, 250:300] = 1
    return plane


def imported(folder: Path, tmp_path: Path, limit_mib: int = LIMIT_MIB) -> ImportSummary:
    """What a process of its own imports of `folder`, in little memory."""
    results = SPAWN.Queue()
    place = f"sqlite:///{tmp_path}/catalog.sqlite"
    child = start(import_in_little_memory, folder, place, tmp_path / "store", results)
    summary, risen = results.get(timeout=PATIENCE_S)
    child.join(PATIENCE_S)
    assert risen < limit_mib
    assert isinstance(summary, ImportSummary)
    return summary


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_a_long_ct_needs_no_more_memory_than_a_short_one(tmp_path: Path, dtype: str) -> None:
    """Nor do its kidneys, which lie in a label map of another axis order and share a value."""
    case = tmp_path / "in" / "case"
    fraction = 0.5 if dtype == "float32" else 0.0
    write_planes(case / "imaging.nii.gz", GRID, body(GRID, fraction), dtype)
    downwards = GRID.matrix @ np.diag([1.0, 1.0, -1.0, 1.0])
    downwards[2, 3] += GRID.matrix[2, 2] * (GRID.shape[2] - 1)
    turned = VolumeGeometry.from_array(GRID.shape, downwards)
    write_planes(case / "segmentation.nii.gz", turned, lambda k: kidneys(399 - k), np.uint8)
    (taken,) = imported(tmp_path / "in", tmp_path).taken
    assert taken.organs == ("kidney_left", "kidney_right")


def test_bombs_beside_a_ct_are_refused_and_the_ct_is_taken(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    empty, full = np.zeros(GRID.shape[:2], np.uint8), np.ones(GRID.shape[:2], np.uint8)
    write_planes(folder / "zeros" / "imaging.nii.gz", GRID, lambda k: empty, np.float32)
    write_planes(folder / "mask" / "imaging.nii.gz", SMALL, body(SMALL), np.int16)
    write_planes(folder / "mask" / "segmentation.nii.gz", GRID, lambda k: empty, np.uint8)
    write_planes(folder / "all" / "imaging.nii.gz", QUARTER, body(QUARTER), np.int16)
    write_planes(folder / "all" / "segmentation.nii.gz", QUARTER, lambda k: full, np.uint8)
    write_series(folder / "deflated", deflated, slices=2)
    for file in write_series(folder / "enormous", large, slices=2):
        enlarge(file)
    summary = imported(folder, tmp_path, LIMIT_WITH_BOMBS_MIB)
    assert [case.source for case in summary.taken] == ["all/imaging.nii.gz", "mask/imaging.nii.gz"]
    reasons = {note.source: note.reason for note in (*summary.refused, *summary.skipped)}
    for source, reason in (
        ("zeros/imaging.nii.gz", "label values"),
        ("mask/segmentation.nii.gz", "different grids"),
        ("deflated/00.dcm", "deflated"),
        ("enormous", "another size"),
    ):
        assert reason in reasons[source]


def deflated(dataset: Dataset, k: int) -> None:
    """64 MiB in a file of 64 KiB."""
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.PixelData = bytes(1 << 26)


def large(dataset: Dataset, k: int) -> None:
    dataset.Rows = dataset.Columns = 64
    dataset.PixelData = np.full((64, 64), 100 * k, np.int16).tobytes()


def enlarge(file: Path) -> None:
    """Have the compressed image of a slice claim 60000×60000 pixels, of which it lacks most."""
    dataset = dcmread(file)
    dataset.compress(JPEG2000Lossless)
    dataset.save_as(file)
    content = bytearray(file.read_bytes())
    size = content.index(b"\xff\x4f\xff\x51") + 8
    for place in (size, size + 16):  # of the image, and of its only tile
        struct.pack_into(">2I", content, place, 60000, 60000)
    file.write_bytes(content)
