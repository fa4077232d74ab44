"""Scans that belong together, by their UIDs: said, and never in two splits of a release."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from atlas_core.catalog import Catalog, uid_marks
from atlas_core.importing import import_folder
from atlas_core.importing.origins import INSTANCES
from atlas_core.release.splits import SplitCase, split_cases
from atlas_core.store import CaseStore
from dicom_series import write_series
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid

FRAME, STUDY = "1.2.9", "1.2.3"
SLICES = 11


class Site:
    """An atlas, and a folder for each import into it."""

    def __init__(self, folder: Path, catalog: Catalog) -> None:
        self.folder, self.catalog = folder, catalog
        self.store = CaseStore(folder / "store")

    def take(self, name: str) -> tuple[str, list[str]]:
        """The case of folder `name`, and what was said of it."""
        found = import_folder(self.folder / name, name, catalog=self.catalog, store=self.store)
        (case,) = (*found.taken, *found.present)
        return case.case_id, [note.reason for note in found.warnings]

    def in_one_split(self, cases: Sequence[str]) -> bool:
        """Whatever other cases there are."""
        marks = uid_marks(self.catalog, list(cases))
        others = [SplitCase(f"other-{n}", "others") for n in range(40)]
        members = [SplitCase(one, one, shared=marks.get(one, frozenset())) for one in cases]
        splits = split_cases([*members, *others])
        joined = {mark for one in cases for mark in marks.get(one, ())}
        assert joined or len(cases) == 1
        return len({splits[one] for one in cases}) == 1


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Catalog.open(f"sqlite:///{tmp_path}/catalog.sqlite") as catalog:
        yield Site(tmp_path, catalog)


def scan(folder: Path, seed: int, **tags: Any) -> list[Path]:
    """A series of its own study and frame of reference, but for `tags`."""
    uids = {
        "SeriesInstanceUID": generate_uid(),
        "FrameOfReferenceUID": generate_uid(),
        "StudyInstanceUID": generate_uid(),
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
    }

    def change(dataset: Dataset, k: int) -> None:
        voxels = np.random.default_rng([seed, k]).normal(0, 10, (24, 24)) + 24
        voxels[4:20, 4:20] += 1040
        dataset.Rows = dataset.Columns = 24
        dataset.PixelData = voxels.astype("<i2").tobytes()
        dataset.InstanceNumber = k + 1
        for keyword, value in (uids | tags).items():
            setattr(dataset, keyword, value(k) if callable(value) else value)

    return write_series(folder, change, SLICES)


def test_a_series_that_comes_again_with_half_its_slices_is_recognised(site: Site) -> None:
    """Other voxels, other grid: the content says nothing. Also where its series has another UID."""
    files = scan(site.folder / "whole", 1)
    (site.folder / "half").mkdir()
    by_place = sorted(files, key=lambda file: float(dcmread(file).ImagePositionPatient[2]))
    for number, file in enumerate(by_place[:8]):
        header = dcmread(file)
        header.SeriesInstanceUID = "1.2.77"
        del header.FrameOfReferenceUID, header.StudyInstanceUID
        header.save_as(site.folder / "half" / f"{number}")
    whole, said = site.take("whole")
    assert said == []
    half, said = site.take("half")
    assert [whole in text and "slices of the series" in text for text in said] == [True]
    assert site.in_one_split([whole, half])
    assert site.take("half") == (half, [])  # is there already: said once


def test_a_derived_series_is_told_of_its_source_whichever_comes_first(site: Site) -> None:
    """By the slices that it names, without any frame of reference; and by that alone."""
    axial = scan(site.folder / "axial", 1)
    sources = [str(dcmread(file).SOPInstanceUID) for file in axial]

    def named(k: int) -> list[Dataset]:
        items = [Dataset() for _ in sources]
        for item, uid in zip(items, sources, strict=True):
            item.ReferencedSOPInstanceUID = uid
        return items

    derived = ["DERIVED", "SECONDARY", "MPR"]
    scan(site.folder / "by_slices", 2, ImageType=derived, SourceImageSequence=named)
    frame = str(dcmread(axial[0]).FrameOfReferenceUID)
    scan(site.folder / "by_frame", 3, ImageType=derived, FrameOfReferenceUID=frame)
    first, said = site.take("by_slices")
    assert said == []
    second, (text,) = site.take("axial")
    assert text.startswith(f"{first} is derived")
    third, (text,) = site.take("by_frame")
    assert text.startswith("is derived") and second in text
    assert site.in_one_split([first, second, third])


def test_phases_of_a_study_are_no_copies_but_of_one_patient(site: Site) -> None:
    tags = {"StudyInstanceUID": STUDY, "FrameOfReferenceUID": FRAME}
    scan(site.folder / "arterial", 1, **tags)
    scan(site.folder / "portal", 2, **tags)
    scan(site.folder / "another", 3)
    cases = []
    for name in ("arterial", "portal", "another"):
        case, said = site.take(name)
        assert said == []
        cases.append(case)
    assert site.in_one_split(cases[:2])
    marks = uid_marks(site.catalog, cases)
    assert marks[cases[0]].isdisjoint(marks[cases[2]])


def test_a_nifti_is_recognised_by_the_json_that_dcm2niix_writes_beside_it(site: Site) -> None:
    files = scan(site.folder / "dicom", 1)
    case, _ = site.take("dicom")
    (site.folder / "nifti").mkdir()
    image = nib.load(site.store.ct_path(case))
    cropped = nib.Nifti1Image(np.asarray(image.dataobj)[2:], image.affine)
    nib.save(cropped, site.folder / "nifti/a.nii.gz")
    header = dcmread(files[0])
    names = ("SeriesInstanceUID", "StudyInstanceUID")
    sidecar = {name: str(header[name].value) for name in names}
    (site.folder / "nifti/a.json").write_text(json.dumps(sidecar))
    other, (text,) = site.take("nifti")
    assert case in text
    assert site.in_one_split([case, other])


def test_the_catalog_holds_no_uid_and_few_marks(site: Site) -> None:
    files = scan(site.folder / "whole", 1)
    case, _ = site.take("whole")
    assert len(uid_marks(site.catalog, [case])[case]) == INSTANCES + 3
    stored = (site.folder / "catalog.sqlite").read_bytes()
    for file in files:
        for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
            assert str(dcmread(file)[keyword].value).encode() not in stored
