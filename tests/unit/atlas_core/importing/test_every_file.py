"""Files as people have them: each is taken or named with a reason that is true, none is misread."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
import pytest
from atlas_core.catalog import Catalog
from atlas_core.errors import InvalidInput
from atlas_core.imaging import read_volume
from atlas_core.importing import Fate, ImportSummary, import_folder
from atlas_core.records import LabelSource
from atlas_core.store import CaseStore
from dicom_series import write_series
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import SecondaryCaptureImageStorage, generate_uid

SHAPE = (40, 24, 12)
AFFINE = np.array([[4.0, 0, 0, -80], [0, 4, 0, -50], [0, 0, 5, 100], [0, 0, 0, 1]])


def ct(seed: int = 0) -> NDArray[np.int16]:
    noise = np.random.default_rng(seed).normal(0, 10, SHAPE)
    voxels = np.full(SHAPE, -1000.0)
    voxels[4:36, 4:20] = 40
    return (voxels + noise).astype(np.int16)


def cube(x: int = 8, value: int = 1) -> NDArray[np.uint8]:
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[x : x + 4, 8:12, 4:8] = value
    return voxels


def save(path: Path, voxels: NDArray[Any], affine: NDArray[Any] = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


class Site:
    """A folder to import from, and what an import made of it."""

    def __init__(self, folder: Path, catalog: Catalog, store: CaseStore) -> None:
        self.folder, self.catalog, self.store = folder, catalog, store

    def run(self, preset: str | None = None, **more: Any) -> ImportSummary:
        summary = import_folder(
            self.folder, "site", preset, catalog=self.catalog, store=self.store, **more
        )
        found = {
            p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file()
        }
        assert {file.source for file in summary.files} == found, "every file is accounted for"
        assert all(f.reason for f in summary.files if f.fate in (Fate.LEFT_OUT, Fate.REFUSED))
        return summary

    def labels(self) -> dict[str, int]:
        (case,) = self.catalog.cases()
        return {x.organ: x.voxels for x in self.catalog.labels(case.id, LabelSource.ORIGINAL)}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "in").mkdir()
    with Catalog.open(f"sqlite:///{tmp_path}/catalog.sqlite") as catalog:
        yield Site(tmp_path / "in", catalog, CaseStore(tmp_path / "store"))


def reasons(summary: ImportSummary) -> dict[str, str]:
    return {f.source: f.reason for f in summary.files if f.reason}


# Geometry


def two_affines(path: Path, sform: NDArray[Any], qform: NDArray[Any]) -> None:
    image = nib.Nifti1Image(ct(), sform)
    image.set_qform(qform, 1)
    image.set_sform(sform, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


def test_two_affines_of_other_sizes_are_refused_unless_told(site: Site) -> None:
    two_affines(site.folder / "ct.nii.gz", np.diag([1.0, 1, 1, 1]), np.diag([3.0, 3, 5, 1]))
    (note,) = site.run().refused
    assert "1×1×1 mm (sform) and 3×3×5 mm (qform" in note.reason
    assert "--affine" in note.reason
    (taken,) = site.run(affine="qform").taken
    stored = read_volume(site.store.ct_path(taken.case_id)).geometry
    assert stored.spacing_mm == pytest.approx((3, 3, 5))
    assert site.catalog.case(taken.case_id).geometry == stored


def test_two_affines_of_one_size_are_said(site: Site) -> None:
    moved = AFFINE.copy()
    moved[0, 3] += 30
    two_affines(site.folder / "ct.nii.gz", AFFINE, moved)
    (note,) = site.run().warnings
    assert "disagree by up to 30.0 mm" in note.reason


# Label meaning


def nnunet(folder: Path, labels: dict[str, Any], voxels: NDArray[np.uint8]) -> None:
    save(folder / "imagesTr" / "a_0000.nii.gz", ct())
    save(folder / "labelsTr" / "a.nii.gz", voxels)
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))


def test_a_tumour_is_part_of_the_only_organ(site: Site) -> None:
    nnunet(site.folder, {"background": 0, "liver": 1, "cancer": 2}, cube() + cube(12, 2))
    summary = site.run()
    assert site.labels() == {"liver": 128}
    assert "taken as a part of liver" in summary.warnings[0].reason


def test_what_nobody_looked_at_is_no_background(site: Site) -> None:
    nnunet(site.folder, {"background": 0, "liver": 1, "ignore": 3}, cube() + cube(12, 3))
    summary = site.run()
    assert site.labels() == {}
    assert "3 (ignore: not annotated)" in reasons(summary)["labelsTr/a.nii.gz"]


def test_integers_with_a_slope_are_whole_numbers_and_probabilities_are_not(site: Site) -> None:
    save(site.folder / "ct.nii.gz", ct())
    image = nib.Nifti1Image(cube().astype(np.float64), AFFINE)
    image.header.set_data_dtype(np.int16)  # nibabel finds a slope: 1 comes back as 0.99998
    (site.folder / "segmentations").mkdir()
    nib.save(image, site.folder / "segmentations" / "Liver.nii.gz")
    soft = nib.Nifti1Image(cube() * np.linspace(0, 1, 12), AFFINE)
    soft.header.set_data_dtype(np.int16)
    nib.save(soft, site.folder / "segmentations" / "Spleen.nii.gz")
    summary = site.run()
    assert site.labels() == {"liver": 64}
    assert "whole numbers" in reasons(summary)["segmentations/Spleen.nii.gz"]


def test_two_masks_of_one_organ_are_not_chosen_from(site: Site) -> None:
    save(site.folder / "ct.nii.gz", ct())
    save(site.folder / "segmentations" / "Liver.nii.gz", cube())
    save(site.folder / "segmentations" / "liver.nii.gz", cube(12))
    assert "2 masks" in reasons(site.run())["segmentations/Liver.nii.gz"]
    assert site.labels() == {}


# One scan, several cases


def test_a_copy_of_a_scan_is_recognised(site: Site) -> None:
    save(site.folder / "a.nii.gz", ct())
    noise = AFFINE + np.random.default_rng(0).normal(0, 1e-4, (4, 4)) * np.array(
        [[1], [1], [1], [0]]
    )
    save(site.folder / "b.nii.gz", ct().clip(-1000, 1000), noise)
    save(site.folder / "c.nii.gz", ct(1))
    summary = site.run(workers=1)
    (note,) = [note for note in summary.warnings if "same scan" in note.reason]
    assert note.source == "b.nii.gz"
    assert summary.taken[0].case_id in note.reason


def test_of_a_series_that_dcm2niix_straightened_the_straight_copy_counts(site: Site) -> None:
    for number, name in enumerate(("x", "x_Eq_1", "y", "y_Tilt_1", "z_Eq_1")):
        save(site.folder / f"{name}.nii.gz", ct(number))
    summary = site.run()
    assert [case.source.removesuffix(".nii.gz") for case in summary.taken] == [
        "x_Eq_1", "y_Tilt_1", "z_Eq_1",
    ]  # fmt: skip
    assert "dcm2niix" in reasons(summary)["x.nii.gz"]


# Pairs


def test_names_in_capitals(site: Site) -> None:
    save(site.folder / "c" / "CT.nii.gz", ct())
    save(site.folder / "c" / "Combined_Labels.nii.gz", cube(value=5))
    site.run()
    assert site.labels() == {"liver": 64}


def test_an_unpaired_label_is_called_that(site: Site) -> None:
    save(site.folder / "imagesTr" / "a_0000.nii.gz", ct())
    save(site.folder / "labelsTr" / "b.nii.gz", cube())
    save(site.folder / "left" / "segmentation-3.nii.gz", cube())
    found = reasons(site.run())
    assert "label without its CT" in found["labelsTr/b.nii.gz"]
    assert "label without its CT" in found["left/segmentation-3.nii.gz"]


def test_paths_in_dataset_json(site: Site) -> None:
    save(site.folder / "volumes" / "one.nii.gz", ct())
    save(site.folder / "truth" / "uno.nii.gz", cube(value=5))
    rows = [{"image": "./volumes/one.nii.gz", "label": "./truth/uno.nii.gz"}]
    content = {"labels": {"0": "background", "5": "liver"}, "training": rows}
    (site.folder / "dataset.json").write_text(json.dumps(content))
    summary = site.run()
    assert [case.source for case in summary.taken] == ["volumes/one.nii.gz"]
    assert not summary.refused
    assert site.labels() == {"liver": 64}


def test_bids_derivatives(site: Site) -> None:
    save(site.folder / "sub-1" / "ct" / "sub-1_ct.nii.gz", ct())
    derived = site.folder / "derivatives" / "manual" / "sub-1" / "ct"
    save(derived / "sub-1_space-orig_dseg.nii.gz", cube(value=7))
    (derived / "sub-1_space-orig_dseg.tsv").write_text("index\tname\n7\tSpleen\n")
    save(derived / "sub-1_label-liver_mask.nii.gz", cube(20))
    summary = site.run()
    assert len(summary.taken) == 1
    assert site.labels() == {"liver": 64, "spleen": 64}


def test_a_list_of_pairs_and_nothing_else(site: Site, tmp_path: Path) -> None:
    save(site.folder / "a" / "scan.nii.gz", ct())
    save(site.folder / "b" / "what.nii.gz", cube(value=3))
    save(site.folder / "c.nii.gz", ct(1))
    pairs = tmp_path / "pairs.csv"
    pairs.write_bytes("\ufeffct;label\r\na/scan.nii.gz;b/what.nii.gz\r\n".encode())
    summary = site.run("totalsegmentator", pairs=pairs)
    assert site.labels()["kidney_left"] == 64
    assert "list of pairs" in reasons(summary)["c.nii.gz"]
    pairs.write_text("ct,label\na/scan.nii.gz,b/none.nii.gz\n")
    with pytest.raises(InvalidInput, match=r"line 2.*b/none\.nii\.gz"):
        site.run(pairs=pairs)
    pairs.write_text("../out.nii.gz,\n")
    (tmp_path / "out.nii.gz").write_bytes(b"")
    with pytest.raises(InvalidInput, match="line 1"):
        site.run(pairs=pairs)


# Formats and DICOM


def test_slicers_files(site: Site) -> None:
    """A CT and a segmentation as 3D Slicer saves them; other files in the folder are named."""
    header = {
        "space": "left-posterior-superior", "space origin": [80, 50, 100],
        "space directions": [[-4, 0, 0], [0, -4, 0], [0, 0, 5]],
        "Segment0_Name": "Liver", "Segment0_LabelValue": "2",
        "Segment1_Name": "Gallbladder", "Segment1_LabelValue": "9",
    }  # fmt: skip
    folder = site.folder / "case"
    folder.mkdir()
    nrrd.write(str(folder / "ct.nrrd"), ct(), {k: header[k] for k in list(header)[:3]})
    nrrd.write(str(folder / "Segmentation.seg.nrrd"), cube(value=2) + cube(20, 9), header)
    (folder / "scene.mrml").write_text("<MRML/>")
    summary = site.run()
    assert site.labels() == {"liver": 64, "gall_bladder": 64}
    assert "is no part of it" in reasons(summary)["case/scene.mrml"]
    (case,) = site.catalog.cases()
    assert case.geometry.matrix == pytest.approx(AFFINE)


def big(dataset: Dataset, k: int) -> None:
    """A body, where the slices of `dicom_series` are too small to be a CT."""
    dataset.Rows, dataset.Columns = SHAPE[1], SHAPE[0]
    dataset.PixelData = (
        (ct(getattr(dataset, "seed", 0))[..., k].T + 1024).astype(np.int16).tobytes()
    )
    dataset.StudyInstanceUID, dataset.InstanceNumber = "1.2.3", k + 1


def test_copies_screens_and_scouts_are_left_out_of_a_series(site: Site) -> None:
    def screen(dataset: Dataset, k: int) -> None:
        dataset.SOPClassUID = SecondaryCaptureImageStorage
        del dataset.ImagePositionPatient

    def scout(dataset: Dataset, k: int) -> None:
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]

    files = write_series(site.folder / "s", big, 6)
    (site.folder / "s" / "x(1).dcm").write_bytes(files[2].read_bytes())
    write_series(site.folder / "s" / "screen", screen, 1)
    write_series(site.folder / "s" / "scout", scout, 1)
    summary = site.run()
    (case,) = site.catalog.cases()
    assert case.shape == (SHAPE[0], SHAPE[1], 6)
    assert len(summary.taken) == 1
    found = reasons(summary)
    assert sum("copy" in why for why in found.values()) == 1
    assert "dose" in found["s/screen/00.dcm"]
    assert "another plane" in found["s/scout/00.dcm"]


def test_two_passes_in_a_series_are_two_cases(site: Site) -> None:
    for seed in (1, 2):

        def change(dataset: Dataset, k: int, seed: int = seed) -> None:
            dataset.AcquisitionNumber = seed
            big(dataset, k)
            dataset.PixelData = (ct(seed)[..., k].T + 1024).astype(np.int16).tobytes()

        for file in write_series(site.folder, change, 5):
            file.rename(file.with_name(f"{seed}-{file.name}"))
    summary = site.run()
    assert len(summary.taken) == 2
    assert {note.reason for note in summary.warnings} == {
        "pass 1 of 2 in one series", "pass 2 of 2 in one series",
    }  # fmt: skip


def test_reformatted_beside_its_source_is_left_out(site: Site) -> None:
    def kind(*words: str) -> Any:
        uid = generate_uid()

        def change(dataset: Dataset, k: int) -> None:
            big(dataset, k)
            dataset.ImageType, dataset.SeriesInstanceUID = list(words), uid
            dataset.FrameOfReferenceUID = "1.2.9"

        return change

    write_series(site.folder / "axial", kind("ORIGINAL", "PRIMARY", "AXIAL"), 5)
    write_series(site.folder / "mpr", kind("DERIVED", "SECONDARY", "MPR"), 5)
    write_series(site.folder / "mip", kind("DERIVED", "SECONDARY", "MIP"), 5)
    coronal = kind("DERIVED", "SECONDARY", "AXIAL")  # as some workstations call everything

    def upright(dataset: Dataset, k: int) -> None:
        coronal(dataset, k)
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
        dataset.ImagePositionPatient = [0.0, 5.0 * k, 0.0]

    write_series(site.folder / "coronal", upright, 5)
    summary = site.run()
    assert [case.source for case in summary.taken] == ["axial"]
    found = reasons(summary)
    assert "lies beside it" in found["mpr/00.dcm"]
    assert "lies beside it" in found["coronal/00.dcm"]
    assert "projection" in found["mip/00.dcm"]


def test_slices_that_headers_promise_are_missed(site: Site) -> None:
    def promised(dataset: Dataset, k: int) -> None:
        big(dataset, k)
        dataset.ImagesInAcquisition = 9

    write_series(site.folder / "s", promised, 6)
    assert "promise 9 images, 6 are here" in site.run().warnings[0].reason


def test_a_series_that_another_of_its_scan_exceeds_is_said(site: Site) -> None:
    """Two reconstructions of one scan; half of one was lost on the way."""

    def kind(seed: int) -> Any:
        uid = generate_uid()

        def change(dataset: Dataset, k: int) -> None:
            big(dataset, k)
            dataset.FrameOfReferenceUID, dataset.SeriesInstanceUID = "1.2.9", uid
            dataset.ImagePositionPatient = [-20.0, -30.0, 5.0 * k]
            dataset.PixelData = (ct(seed)[..., k % 5].T + 1024).astype(np.int16).tobytes()

        return change

    write_series(site.folder / "soft", kind(1), 12)
    write_series(site.folder / "bone", kind(2), 12)
    write_series(site.folder / "lost", kind(3), 6)
    (note,) = [note for note in site.run().warnings if "another series" in note.reason]
    assert note.source == "lost"
    assert "goes 30 mm further" in note.reason


def test_dicom_without_a_preamble_or_uids_is_dicom(site: Site) -> None:
    def change(dataset: Dataset, k: int) -> None:
        big(dataset, k)
        del dataset.SeriesInstanceUID, dataset.StudyInstanceUID

    for file in write_series(site.folder / "s", change, 5):
        bare = file.read_bytes()[132:]
        file.with_suffix("").write_bytes(bare)
        file.unlink()
    summary = site.run()
    assert not summary.refused
    (case,) = site.catalog.cases()
    stored = read_volume(site.store.ct_path(case.id)).voxels
    np.testing.assert_array_equal(stored, ct()[..., :5])


def test_a_missing_decoder_is_called_that(site: Site) -> None:
    for file in write_series(site.folder / "s", big, 5):
        raw = file.read_bytes()
        explicit, remote = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.4.94"  # JPIP
        length = (20).to_bytes(2, "little"), (22).to_bytes(2, "little")
        file.write_bytes(raw.replace(length[0] + explicit, length[1] + remote, 1))
    assert "no decoder" in site.run().refused[0].reason
