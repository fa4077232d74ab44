"""Gantry tilt and uneven gaps: undone where it is asked for, and on record."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
from atlas_core.catalog import Catalog, warnings_by_case
from atlas_core.imaging import read_volume
from atlas_core.imaging.dicom_reader import write_series
from atlas_core.importing import import_folder
from atlas_core.store import CaseStore
from dicom_series import write_series as write_slices
from pydicom import Dataset

GRADIENT = np.array([2.0, -3.0, 5.0])
"""HU a mm along x, y, z of the patient (LPS)."""

STACKS = {
    "tilted": lambda k: (0.0, 0.9 * k, 2.5 * k),
    "tilted the other way": lambda k: (0.0, -1.3 * k, 2.5 * k),
    "uneven": lambda k: (0.0, 0.0, 2.5 * k + 3.5 * max(0, k - 5)),
    "sheared, and uneven": lambda k: (0.45 * k, 0.9 * k, 1.1 * k + 0.2 * k * k),
}
TURNS = {
    "axial": ([1, 0, 0], [0, 1, 0]),
    "oblique": ([np.cos(0.3), np.sin(0.3), 0], [0, 0, -1]),
}


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("stack", STACKS)
def test_what_is_linear_in_the_patient_stays_so(tmp_path: Path, stack: str, turn: str) -> None:
    row, column = (np.array(axis, float) for axis in TURNS[turn])
    place = np.column_stack([row, column, np.cross(row, column)])
    rows, columns = 40, 36

    def ramp(dataset: Dataset, k: int) -> None:
        position = place @ np.array(STACKS[stack](k))
        dataset.ImageOrientationPatient = [*row.tolist(), *column.tolist()]
        dataset.ImagePositionPatient = position.tolist()
        dataset.Rows, dataset.Columns = rows, columns
        down, along = np.meshgrid(np.arange(rows) * 0.7, np.arange(columns) * 0.8, indexing="ij")
        points = position + down[..., None] * column + along[..., None] * row
        dataset.RescaleIntercept = 0
        dataset.PixelData = np.rint(points @ GRADIENT).astype("<i2").tobytes()

    files = write_slices(tmp_path / "series", ramp, slices=9)
    said = write_series(files, tmp_path / "straight.nii.gz", resample=True)
    assert said is not None and "resampled from 9 slices" in said
    straight = read_volume(tmp_path / "straight.nii.gz")
    matrix = straight.geometry.matrix
    assert np.allclose(
        matrix[:3, :3].T @ matrix[:3, :3], np.diag(straight.geometry.spacing_mm) ** 2, atol=1e-4
    )
    index = np.moveaxis(np.indices(straight.voxels.shape), 0, -1)
    ras = index @ matrix[:3, :3].T + matrix[:3, 3]
    expected = (ras * [-1, -1, 1]) @ GRADIENT
    scanned = straight.voxels != -1024
    assert np.abs(straight.voxels - expected)[scanned].max() <= 1.5  # rounded twice
    assert np.count_nonzero(scanned) > 0.6 * rows * columns * straight.voxels.shape[2]


def test_ends_of_the_stack_stay(tmp_path: Path) -> None:
    def uneven(dataset: Dataset, k: int) -> None:
        dataset.ImagePositionPatient = [0, 0, (0.0, 2.0, 7.0, 8.5)[k]]

    files = write_slices(tmp_path / "series", uneven)
    write_series(files, tmp_path / "straight.nii.gz", resample=True)
    grid = read_volume(tmp_path / "straight.nii.gz").geometry
    assert grid.shape[2] == 7 and grid.spacing_mm[2] <= 1.5
    assert np.ptp(grid.corners_mm()[:, 2]) == pytest.approx(8.5)


def test_a_regular_series_is_not_touched(tmp_path: Path) -> None:
    files = write_slices(tmp_path / "series")
    assert write_series(files, tmp_path / "asked.nii.gz", resample=True) is None
    assert write_series(files, tmp_path / "plain.nii.gz") is None
    asked, plain = (tmp_path / f"{name}.nii.gz" for name in ("asked", "plain"))
    assert asked.read_bytes() == plain.read_bytes()


def test_a_real_tilted_series_is_refused_or_resampled_and_on_record(
    shared_data: Path, tmp_path: Path
) -> None:
    with tarfile.open(shared_data / "dcm_qa_ct/GE_gantrytilt_variable_spacing.tar.xz") as archive:
        archive.extractall(tmp_path / "series", filter="data")
    store = CaseStore(tmp_path / "store")
    with Catalog.open(f"sqlite:///{tmp_path}/catalog.sqlite") as catalog:
        refused = import_folder(tmp_path / "series", "qa", catalog=catalog, store=store)
        assert not refused.taken and "--resample" in refused.refused[0].reason
        taken = import_folder(
            tmp_path / "series", "qa", catalog=catalog, store=store, resample=True
        )
        (case,) = catalog.cases()
        (warning,) = warnings_by_case(catalog, [case.id])[case.id]
    assert "1.08..7 mm, and tilted by 18.5 degrees" in warning.text
    assert any("resampled from 28 slices" in note.reason for note in taken.warnings)
    volume = read_volume(store.ct_path(case.id))
    assert volume.geometry.spacing_mm[2] == pytest.approx(1.08, abs=0.01)
    assert volume.geometry.shape[1] > 512 >= volume.geometry.shape[0]  # the gantry leans back
