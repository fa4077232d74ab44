"""A dump of an archive in one folder: no names that say anything, series of many patients mixed."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from atlas_core.catalog import Catalog
from atlas_core.imaging.dicom_series import _Stack
from atlas_core.importing import ImportSummary, import_folder
from atlas_core.store import CaseStore
from dicom_series import in_a_study, write_series
from pydicom import Dataset
from pydicom.uid import generate_uid

PATIENTS, SLICES = 8, 4
OPENED: list[str] = []


def _listen(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open":
        OPENED.append(str(arguments[0]))


@pytest.fixture(scope="module", autouse=True)
def _opened() -> None:
    sys.addaudithook(_listen)  # for ever: there is no way to take one off


def body(dataset: Dataset, k: int) -> None:
    """Pixels of air and soft tissue, 24 × 24."""
    voxels = np.random.default_rng(k).normal(0, 10, (24, 24)) + 24
    voxels[4:20, 4:20] += 1040
    dataset.Rows = dataset.Columns = 24
    dataset.PixelData = voxels.astype("<i2").tobytes()


def dump(folder: Path) -> Path:
    for number in range(PATIENTS):
        series = generate_uid()

        def change(dataset: Dataset, k: int, series: str = series, number: int = number) -> None:
            body(dataset, k + 100 * number)
            dataset.SeriesInstanceUID, dataset.PatientID = series, str(number)

        for k, file in enumerate(write_series(folder / "one", in_a_study(change), SLICES)):
            file.rename(folder / f"{(k * PATIENTS + number) * 7919 % 997:03}")
    (folder / "one").rmdir()
    return folder


def imported(folder: Path, home: Path) -> ImportSummary:
    with Catalog.open(f"sqlite:///{home}/catalog.sqlite") as catalog:
        return import_folder(folder, "site", catalog=catalog, store=CaseStore(home / "store"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path


def test_the_series_are_sorted_out(home: Path) -> None:
    summary = imported(dump(home / "in"), home)
    assert len(summary.taken) == PATIENTS and not summary.refused
    with Catalog.open(f"sqlite:///{home}/catalog.sqlite") as catalog:
        assert {case.shape[2] for case in catalog.cases()} == {SLICES}


def test_a_file_is_opened_once_for_its_header_and_once_for_its_pixels(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is opened and what is compared grows with the files, however many patients."""
    folder = dump(home / "in")
    compared: list[_Stack] = []
    short_of = _Stack.short_of

    def counted(one: _Stack, other: _Stack) -> float:
        compared.append(one)
        return short_of(one, other)

    monkeypatch.setattr(_Stack, "short_of", counted)
    OPENED.clear()
    imported(folder, home)
    times = Counter(Path(name).name for name in OPENED if Path(name).parent == folder)
    first = min(times)  # tells whether the folder holds DICOM
    assert times.pop(first) == 3
    assert sorted(times.values()) == [2] * (PATIENTS * SLICES - 1)
    assert len(compared) == PATIENTS  # with those of its own scan
