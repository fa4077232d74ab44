"""Labels where organs are not: what is said of them, and that nothing is said of real ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from atlas_core.catalog import Catalog, warnings_by_case
from atlas_core.geometry import VolumeGeometry
from atlas_core.importing import check_labels, import_folder
from atlas_core.importing.anatomy import LabelFindings, label_warnings
from atlas_core.importing.label_survey import OrganFinding, OrganSurvey
from atlas_core.organs import ABDOMEN_ATLAS, OrganScheme, read_scheme
from atlas_core.records import CaseWarning, WarningKind
from atlas_core.store import CaseStore
from numpy.typing import NDArray

Change = Callable[[NDArray[Any]], NDArray[Any]]

MIRRORED: Mapping[str, Change] = {
    "left and right": lambda voxels: voxels[::-1],
    "back and front": lambda voxels: voxels[:, ::-1],
    "head and feet": lambda voxels: voxels[..., ::-1],
}

NOT_CUT = ((False, False),) * 3


def finding(organ: str, **other: Any) -> OrganFinding:
    """An organ of the usual place and size."""
    known = ABDOMEN_ATLAS[organ]
    assert known.centre_mm is not None
    assert known.volume_ml is not None
    usual: dict[str, Any] = {
        "ml": sum(known.volume_ml) / 2,
        "centre_mm": known.centre_mm,
        "cut": NOT_CUT,
        "air": 0.0,
        "padding": 0.0,
        "far_ml": 0.0,
    }
    return OrganFinding(organ, **(usual | other))


def warned(*found: OrganFinding, scheme: OrganScheme = ABDOMEN_ATLAS) -> tuple[CaseWarning, ...]:
    return label_warnings(LabelFindings(found, {}, None, (-200.0, 250.0)), scheme)


def everything() -> list[OrganFinding]:
    return [finding(organ) for organ in ABDOMEN_ATLAS.names]


def kinds(warnings: tuple[CaseWarning, ...]) -> set[tuple[WarningKind, str | None]]:
    return {(warning.kind, warning.organ) for warning in warnings}


def test_organs_in_their_places_are_not_remarked_on() -> None:
    assert warned(*everything()) == ()
    for organ in ABDOMEN_ATLAS.names:  # nor is one alone
        assert warned(finding(organ)) == ()


@pytest.mark.parametrize("axis", range(3))
def test_a_mirrored_body_is_said_once_wherever_it_lies(axis: int) -> None:
    """Whatever the origin of coordinates."""
    mirrored = []
    for one in everything():
        place = np.array(one.centre_mm)
        place[axis] = -place[axis]
        mirrored.append(finding(one.organ, centre_mm=tuple(place + np.array([300, -40, 1000]))))

    (warning,) = warned(*mirrored)

    assert warning.kind is WarningKind.ORIENTATION
    assert list(MIRRORED)[axis] in warning.text


def test_exchanged_partners_are_said_of_both() -> None:
    left, right = finding("kidney_left"), finding("kidney_right")
    exchanged = [
        finding("kidney_left", centre_mm=right.centre_mm),
        finding("kidney_right", centre_mm=left.centre_mm),
    ]
    others = [one for one in everything() if "kidney" not in one.organ]

    (warning,) = warned(*exchanged, *others)

    assert warning.organ == "kidney_left"
    assert "kidney_right" in warning.text


def test_one_organ_on_the_wrong_side_is_named() -> None:
    others = [one for one in everything() if one.organ != "spleen"]
    assert finding("spleen").centre_mm[0] < 0

    (warning,) = warned(finding("spleen", centre_mm=(100, 15, 35)), *others)

    assert (warning.kind, warning.organ) == (WarningKind.ORIENTATION, "spleen")
    assert "right, not left" in warning.text


def test_sides_are_those_of_the_body_where_one_organ_is_labelled() -> None:
    liver = [finding("liver", centre_mm=(-70, 75, 30))]
    found = label_warnings(LabelFindings(liver, {}, 0.0, (-200.0, 250.0)), ABDOMEN_ATLAS)
    assert kinds(found) == {(WarningKind.ORIENTATION, None)}


@pytest.mark.parametrize(
    ("organ", "what", "kind"),
    [
        ("gall_bladder", {"ml": 2700.0}, WarningKind.VOLUME),
        ("liver", {"ml": 100.0}, WarningKind.VOLUME),
        ("liver", {"ml": 100.0, "cut": (*NOT_CUT[:2], (False, True))}, WarningKind.TRUNCATED),
        ("liver", {"air": 0.4}, WarningKind.DENSITY),
        ("stomach", {"padding": 0.4}, WarningKind.DENSITY),
        ("spleen", {"far_ml": 20.0}, WarningKind.PIECES),
    ],
)
def test_what_an_organ_cannot_be_is_said(
    organ: str, what: dict[str, Any], kind: WarningKind
) -> None:
    others = [one for one in everything() if one.organ != organ]
    assert kinds(warned(finding(organ, **what), *others)) == {(kind, organ)}


def test_gas_in_the_stomach_and_children_are_no_faults() -> None:
    assert warned(finding("stomach", air=0.6)) == ()
    assert warned(finding("kidney_left", ml=40.0)) == ()  # of a child of two


def test_lungs_that_an_abdomen_cuts_are_not_missing_slices() -> None:
    """The scan ends where lungs usually only begin; a liver would be whole in it."""
    scheme = read_scheme("abdomen_atlas_1_1")
    cut = (*NOT_CUT[:2], (False, True))
    lungs = [
        OrganFinding(name, 60.0, (x, 40.0, 60.0), cut, 0.9, 0.0, 0.0)
        for name, x in (("lung_left", -80.0), ("lung_right", 80.0))
    ]
    found = LabelFindings([*everything(), *lungs], {}, None, (-200.0, 80.0))
    assert label_warnings(found, scheme) == ()


def test_an_organ_that_the_scan_cuts_is_said_with_the_end() -> None:
    """Nothing is said of one that is touched, of vessels, or where the scan goes no further."""
    others = [one for one in everything() if one.organ not in ("liver", "aorta")]
    lower, upper = (*NOT_CUT[:2], (True, False)), (*NOT_CUT[:2], (False, True))
    (found,) = warned(finding("liver", cut=upper, at_ends=(0.0, 0.6)), *others)
    assert (found.kind, found.organ) == (WarningKind.TRUNCATED, "liver")
    assert "upper end" in found.text
    (found,) = warned(finding("liver", cut=lower, at_ends=(0.4, 0.0)), *others)
    assert "lower end" in found.text
    assert warned(finding("liver", cut=upper, at_ends=(0.0, 0.1)), *others) == ()
    assert warned(finding("aorta", cut=upper, at_ends=(0.0, 0.9), slender=8.0), *others) == ()
    pelvis = LabelFindings(
        [finding("liver", cut=upper, at_ends=(0.0, 0.9)), *others], {}, None, (-200.0, 20.0)
    )
    assert label_warnings(pelvis, ABDOMEN_ATLAS) == ()


@pytest.mark.parametrize("up", [1, -1])
@pytest.mark.parametrize("axis", range(3))
def test_areas_at_the_ends_are_those_towards_feet_and_head(axis: int, up: int) -> None:
    """Whichever axis of the file lies along the body, and in whichever direction."""
    order = [0, 1, 2]
    order[axis], order[2] = 2, axis
    mask = np.zeros((10, 10, 10), np.bool_)
    mask[2:6, 2:6, 6:] = True
    mask[2:4, 2:4, 9] = False
    turned = mask[..., ::up].transpose(order)
    affine = np.diag([2.0, 2, 2 * up, 1])[:, [*order, 3]]
    survey = OrganSurvey("liver", VolumeGeometry.from_array(turned.shape, affine))
    index = np.flatnonzero(turned.ravel(order="F"))
    survey.add(index, np.full(index.size, 60))
    found = survey.finding()
    assert found is not None
    assert found.at_ends == (0.0, 0.75)
    assert found.slender == pytest.approx(1.0)


def test_pieces_are_counted_where_no_chain_joins_them() -> None:
    grid = VolumeGeometry.from_array((60, 40, 40), np.diag([4.0, 4, 4, 1]))
    mask = np.zeros(grid.shape, np.bool_)
    mask[2:12, 10:20, 10:20] = True
    mask[17:20, 10:20, 10:20] = True  # 24 mm further: still of it
    mask[40:44, 10:20, 10:20] = True  # 84 mm further
    survey = OrganSurvey("liver", grid)
    for start in range(0, mask.size, 7777):
        piece = mask.ravel(order="F")[start : start + 7777]
        index = start + np.flatnonzero(piece)
        survey.add(index, np.full(index.size, 60))

    found = survey.finding()

    assert found is not None
    assert found.ml == pytest.approx(mask.sum() * 0.064)
    assert found.far_ml == pytest.approx(400 * 0.064)
    assert found.centre_mm == pytest.approx(4 * np.argwhere(mask).mean(0))
    assert found.cut == NOT_CUT


# Real scans and labels


@pytest.fixture
def real(shared_data: Path) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """CT, its label map in TotalSegmentator's values, and their affine."""
    folder = shared_data / "TotalSegmentator/tests/reference_files"
    ct = nib.load(folder / "example_ct.nii.gz")
    label = nib.load(folder / "example_seg_fast_force_split.nii.gz")
    return np.asarray(ct.dataobj), np.asarray(label.dataobj).astype(np.uint8), ct.affine


def imported(folder: Path, home: Path) -> tuple[CaseWarning, ...]:
    """What is on record of the only case in `folder` after its import."""
    with Catalog.open(f"sqlite:///{home}/catalog.sqlite") as catalog:
        store = CaseStore(home / "store")
        summary = import_folder(folder, "real", "totalsegmentator", catalog=catalog, store=store)
        (taken,) = summary.taken
        assert len(taken.organs) == len(ABDOMEN_ATLAS)
        found = warnings_by_case(catalog, [taken.case_id]).get(taken.case_id, ())
        assert tuple(one.text for one in found) == taken.remarks
        assert check_labels(catalog, store, catalog.case(taken.case_id), again=True) == found
    return found


def save(folder: Path, ct: NDArray[Any], label: NDArray[Any], affine: NDArray[Any]) -> Path:
    folder.mkdir(parents=True)
    nib.save(nib.Nifti1Image(ct, affine), folder / "ct.nii.gz")
    nib.save(nib.Nifti1Image(label, affine), folder / "segmentation.nii.gz")
    return folder


def test_of_a_real_scan_only_its_end_is_remarked_on(
    real: tuple[Any, Any, Any], tmp_path: Path
) -> None:
    """Its last slice shows nine tenths of the widest cross-sections of liver and spleen."""
    found = imported(save(tmp_path / "case", *real), tmp_path)
    cut = {(WarningKind.TRUNCATED, organ) for organ in ("liver", "spleen", "stomach")}
    assert kinds(found) == cut
    assert all("upper end" in one.text for one in found)


@pytest.mark.parametrize("what", MIRRORED)
def test_a_mirrored_real_scan_is_said(
    real: tuple[Any, Any, Any], what: str, tmp_path: Path
) -> None:
    ct, label, affine = real
    mirror = MIRRORED[what]
    found = imported(save(tmp_path / "case", mirror(ct), mirror(label), affine), tmp_path)
    turned = [one for one in found if one.kind is not WarningKind.TRUNCATED]
    assert [(one.kind, what in one.text) for one in turned] == [(WarningKind.ORIENTATION, True)]


def test_a_label_over_air_is_said(real: tuple[Any, Any, Any], tmp_path: Path) -> None:
    """The label of another scan, or moved: some of its organs lie outside the body."""
    ct, label, affine = real
    found = imported(save(tmp_path / "case", ct, np.roll(label, 40, 1), affine), tmp_path)
    assert (WarningKind.DENSITY, "liver") in kinds(found)


def test_real_label_maps_of_a_dataset_are_not_remarked_on(
    shared_data: Path, tmp_path: Path
) -> None:
    for subject in sorted((shared_data / "totalsegdata/Data").glob("s*")):
        folder = tmp_path / subject.name
        masks = folder / "case/segmentations"
        masks.mkdir(parents=True)
        for organ in ABDOMEN_ATLAS:
            names = [organ.name, *organ.aliases]
            (mask,) = [
                file
                for name in names
                for file in subject.glob(f"segmentations/{name.replace(' ', '_')}.nii.gz")
            ] or [subject / "segmentations/gallbladder.nii.gz"]
            (masks / mask.name).symlink_to(mask.resolve())
        image = nib.load(masks / "liver.nii.gz")
        ct = np.random.default_rng(0).normal(40, 20, image.shape).astype(np.int16)
        ct[:3] = ct[-3:] = -1000
        nib.save(nib.Nifti1Image(ct, image.affine), folder / "case/ct.nii.gz")
        assert imported(folder, folder) == ()
