"""What is refused says what to do; what its geometry places is not refused."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import atlas_core
import atlas_core.errors as domain
import nibabel as nib
import numpy as np
import pytest
from atlas_core.catalog import Catalog
from atlas_core.imaging import read_label
from atlas_core.importing import ImportSummary, import_folder
from atlas_core.store import CaseStore
from dicom_series import write_series
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

READERS = (
    *(f"imaging/{name}.py" for name in (
        "dicom_pixels", "dicom_reader", "dicom_series", "dicom_slices", "itk_header",
        "nifti_header", "nifti_reader", "voxel_decoder",
    )),
    *(f"dicom/{name}.py" for name in ("contours", "label_objects", "segments", "source_series")),
    *(f"importing/{file.name}" for file in (
        Path(atlas_core.__path__[0]) / "importing"
    ).glob("*.py")),
)  # fmt: skip
"""What looks at files of others."""

SHAPE = (40, 24, 12)
AFFINE = np.array([[4.0, 0, 0, -80], [0, 4, 0, -50], [0, 0, 5, 100], [0, 0, 0, 1]])


def refusals(file: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            kind = getattr(domain, node.func.id, None)
            if isinstance(kind, type) and issubclass(kind, domain.AtlasError):
                yield node


@pytest.mark.parametrize("name", READERS)
def test_every_refusal_has_a_remedy(name: str) -> None:
    file = Path(atlas_core.__path__[0]) / name
    without = [
        f"line {call.lineno}: {ast.unparse(call.args[0])}"
        for call in refusals(file)
        if call.args and not any(given.arg == "remedy" for given in call.keywords)
    ]
    assert not without


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).normal(0, 10, SHAPE)
    voxels = np.full(SHAPE, -1000.0)
    voxels[4:36, 4:20] = 40
    save(tmp_path / "in/case/ct.nii.gz", (voxels + noise).astype(np.int16), AFFINE)
    return tmp_path / "in"


def save(path: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)


def run(folder: Path) -> tuple[ImportSummary, dict[str, np.ndarray]]:
    """The summary, and the original labels."""
    store = CaseStore(folder.parent / "store")
    with Catalog.open(f"sqlite:///{folder.parent}/catalog.sqlite") as catalog:
        summary = import_folder(folder, "site", catalog=catalog, store=store)
        return summary, {
            label.organ: read_label(store.path(label.path)).voxels
            for case in catalog.cases()
            for label in catalog.labels(case.id)
        }


def reasons(summary: ImportSummary) -> dict[str, str]:
    return {f.source: f.reason for f in summary.files if f.reason}


@pytest.mark.parametrize("turned", [False, True])
def test_a_mask_that_was_cropped_lies_where_its_header_says(folder: Path, turned: bool) -> None:
    whole = np.zeros(SHAPE, np.uint8)
    whole[8:14, 5:9, 3:10] = np.random.default_rng(1).integers(0, 2, (6, 4, 7))
    whole[8, 5, 3] = whole[13, 8, 9] = 1
    box, affine = whole[8:14, 5:9, 3:10], AFFINE.copy()
    affine[:3, 3] = (AFFINE @ [8, 5, 3, 1])[:3]
    if turned:
        box = box[::-1].transpose(2, 0, 1)
        affine = affine @ np.array([[0, -1, 0, 5], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    save(folder / "case/segmentations/liver.nii.gz", np.ascontiguousarray(box), affine)
    summary, labels = run(folder)
    assert not summary.refused
    assert np.array_equal(labels["liver"], whole)


def test_a_mask_with_fewer_slices_and_the_origin_of_the_whole_is_not_placed(folder: Path) -> None:
    upper = np.ones((*SHAPE[:2], 5), np.uint8)
    save(folder / "case/segmentations/liver.nii.gz", upper, AFFINE)
    summary, labels = run(folder)
    assert "--resample" in summary.refused[0].reason and not labels


def test_a_mask_that_reaches_out_of_its_ct_is_refused(folder: Path) -> None:
    affine = AFFINE.copy()
    affine[:3, 3] = (AFFINE @ [-2, 5, 3, 1])[:3]
    save(folder / "case/segmentations/liver.nii.gz", np.ones((6, 4, 7), np.uint8), affine)
    summary, labels = run(folder)
    assert "different grids" in summary.refused[0].reason and not labels


def test_a_single_slice_is_no_volume(folder: Path) -> None:
    ct = nib.load(folder / "case/ct.nii.gz")
    save(folder / "one.nii.gz", np.asarray(ct.dataobj)[:, :, :1], AFFINE)
    summary, _ = run(folder)
    assert "40×24×1); import the whole scan" in reasons(summary)["one.nii.gz"]


def test_another_ct_in_the_folder_of_a_case_is_told_where_to_go(folder: Path) -> None:
    ct = nib.load(folder / "case/ct.nii.gz")
    save(folder / "case/segmentations/liver.nii.gz", np.ones(SHAPE, np.uint8), AFFINE)
    save(folder / "case/ct2.nii.gz", np.asarray(ct.dataobj) + np.int16(1), AFFINE)
    summary, _ = run(folder)
    assert len(summary.taken) == 1
    why = reasons(summary)["case/ct2.nii.gz"]
    assert "ct.nii.gz makes its folder one case" in why and "a folder of its own" in why


def test_a_decimal_comma_is_told(tmp_path: Path) -> None:
    def comma(dataset: Dataset, k: int) -> None:
        tag = Tag("PixelSpacing")
        dataset[tag] = RawDataElement(tag, "DS", 8, b"0,7\\0,8 ", 0, False, True)

    write_series(tmp_path / "in", comma)
    summary, _ = run(tmp_path / "in")
    why = summary.refused[0].reason
    assert "with decimal points" in why and "export the series again" in why
