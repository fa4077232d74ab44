"""Phantoms: determinism, anatomy, orientation, hard kinds, and the folders they are written to."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from atlas_core.errors import Conflict, InvalidInput
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import read_volume
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.phantoms import (
    HARD_KINDS,
    TAIL_KINDS,
    Kind,
    Phantom,
    PhantomGrid,
    case_plan,
    make_phantom,
    write_phantoms,
)
from atlas_core.phantoms.dataset import PARTIAL_DATASETS
from atlas_core.phantoms.scanner import PHASE_SHARES, Phase

COARSE = PhantomGrid(columns=64, slice_mm=6.0)
"""A tenth of a second each; organs are still some voxels wide."""


def fingerprint(phantom: Phantom) -> str:
    digest = hashlib.sha256(phantom.ct.tobytes(order="F"))
    digest.update(phantom.truth.tobytes(order="F"))
    digest.update(str(phantom.geometry.affine).encode())
    return digest.hexdigest()


def centre_mm(phantom: Phantom, organ: str) -> np.ndarray:
    """Centre of an organ in RAS+ mm, relative to the spine-side middle of the body."""
    index = np.argwhere(phantom.truth == ABDOMEN_ATLAS[organ].label).mean(axis=0)
    return phantom.geometry.matrix[:3, :3] @ index + phantom.geometry.matrix[:3, 3]


@pytest.fixture(scope="module")
def ordinary() -> list[Phantom]:
    return [make_phantom(seed, grid=COARSE) for seed in range(8)]


def test_a_phantom_follows_from_its_seed_to_the_byte() -> None:
    assert fingerprint(make_phantom(3, grid=COARSE)) == fingerprint(make_phantom(3, grid=COARSE))
    assert fingerprint(make_phantom(3, grid=COARSE)) != fingerprint(make_phantom(4, grid=COARSE))


def test_another_process_makes_the_same_phantom() -> None:
    script = (
        "import hashlib; from atlas_core.phantoms.scanner import PhantomGrid, make_phantom;"
        "p = make_phantom(3, grid=PhantomGrid(columns=64, slice_mm=6.0));"
        "print(hashlib.sha256(p.ct.tobytes(order='F')).hexdigest())"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.strip()
    here = hashlib.sha256(make_phantom(3, grid=COARSE).ct.tobytes(order="F")).hexdigest()
    assert printed == here


def test_every_ordinary_phantom_has_all_organs_of_plausible_volume(ordinary: list[Phantom]) -> None:
    # Generous bounds around adult reference volumes (ml).
    bounds = {
        "aorta": (25, 220), "gall_bladder": (4, 90), "kidney_left": (50, 420),
        "kidney_right": (50, 420), "liver": (600, 2600), "pancreas": (25, 180),
        "postcava": (20, 200), "spleen": (15, 450), "stomach": (60, 900),
    }  # fmt: skip
    for phantom in ordinary:
        for organ, volume in phantom.volumes_ml().items():
            low, high = bounds[organ]
            assert low <= volume <= high, (phantom.seed, organ, volume)


def test_organs_lie_where_a_radiologist_expects_them(ordinary: list[Phantom]) -> None:
    for phantom in ordinary:
        at = {organ: centre_mm(phantom, organ) for organ in ABDOMEN_ATLAS.names}
        right, front, up = 0, 1, 2
        assert at["liver"][right] > at["spleen"][right] + 80
        assert at["kidney_right"][right] > at["kidney_left"][right] + 60
        assert at["postcava"][right] > at["aorta"][right] + 10
        assert at["stomach"][front] > at["kidney_left"][front] + 20
        assert at["pancreas"][front] > at["aorta"][front]
        assert at["gall_bladder"][up] < at["liver"][up]
        assert at["gall_bladder"][front] > at["kidney_right"][front] + 20
        assert at["liver"][up] > at["kidney_right"][up]


def test_attenuation_follows_the_phase() -> None:
    def mean_hu(phase: Phase, organ: str) -> float:
        phantom = make_phantom(5, phase=phase, grid=COARSE)
        return float(np.median(phantom.ct[phantom.truth == ABDOMEN_ATLAS[organ].label]))

    assert mean_hu(Phase.ARTERIAL, "aorta") > mean_hu(Phase.PORTAL, "aorta") + 60
    assert mean_hu(Phase.PORTAL, "aorta") > mean_hu(Phase.PRE, "aorta") + 60
    assert mean_hu(Phase.PORTAL, "liver") > mean_hu(Phase.ARTERIAL, "liver") + 20
    assert 30 < mean_hu(Phase.PRE, "spleen") < 65


def test_another_phase_leaves_the_body_as_it_was() -> None:
    portal, pre = (make_phantom(6, phase=phase, grid=COARSE) for phase in (Phase.PORTAL, Phase.PRE))
    assert portal.geometry.same_grid(pre.geometry)
    assert np.array_equal(portal.truth, pre.truth)


def test_orientations_describe_the_same_body() -> None:
    upright = make_phantom(7, grid=PhantomGrid(64, 6.0, "RAS"))
    for codes in ("LPS", "IPL", "SAR", "PIR"):
        turned = make_phantom(7, grid=PhantomGrid(64, 6.0, codes))
        assert turned.geometry.axis_codes == codes
        axes = turned.geometry.axis_map
        assert np.array_equal(axes.to_canonical(turned.ct), upright.ct)
        assert np.array_equal(axes.to_canonical(turned.truth), upright.truth)
        assert turned.geometry.canonical().same_grid(upright.geometry)


def test_files_come_in_several_orientations(ordinary: list[Phantom]) -> None:
    assert len({phantom.geometry.axis_codes for phantom in ordinary}) > 1


def test_a_child_is_a_small_patient() -> None:
    child, adult = make_phantom(9, Kind.CHILD, grid=COARSE), make_phantom(9, grid=COARSE)
    shrunk = child.volumes_ml()["liver"] / adult.volumes_ml()["liver"]
    assert (0.5 / 1.08) ** 3 < shrunk < (0.75 / 0.9) ** 3


def test_situs_inversus_is_a_mirror_and_left_stays_left() -> None:
    at = {
        organ: centre_mm(make_phantom(9, Kind.SITUS_INVERSUS, grid=COARSE), organ)[0]
        for organ in ("liver", "spleen", "kidney_left", "kidney_right")
    }
    assert at["liver"] < at["spleen"] - 80
    assert at["kidney_left"] < at["kidney_right"] - 60


def test_a_wrong_header_tells_another_side_of_the_same_voxels() -> None:
    wrong, right = (
        make_phantom(9, Kind.WRONG_ORIENTATION, grid=COARSE),
        make_phantom(9, grid=COARSE),
    )
    assert np.array_equal(wrong.ct, right.ct)
    assert np.array_equal(wrong.truth, right.truth)
    codes = (wrong.geometry.axis_codes, right.geometry.axis_codes)
    differ = [a != b for a, b in zip(*codes, strict=True)]
    assert sum(differ) == 1


def test_failures_of_the_scan_change_the_picture_not_the_patient() -> None:
    plain = make_phantom(9, grid=COARSE)
    for kind in (Kind.MOTION, Kind.LOW_CONTRAST, Kind.METAL):
        failed = make_phantom(9, kind, grid=COARSE)
        assert np.array_equal(failed.truth, plain.truth)
        assert not np.array_equal(failed.ct, plain.ct)

    def spread(phantom: Phantom) -> float:
        organs = ("liver", "spleen", "kidney_left", "postcava", "pancreas")
        means = [phantom.ct[phantom.truth == ABDOMEN_ATLAS[o].label].mean() for o in organs]
        return float(np.std(means))

    assert spread(make_phantom(9, Kind.LOW_CONTRAST, grid=COARSE)) < 0.5 * spread(plain)
    assert make_phantom(9, Kind.METAL, grid=COARSE).ct.max() > 2500


def test_a_cropped_scan_is_short_and_thick_slices_are_few() -> None:
    plain, cropped = make_phantom(9, grid=COARSE), make_phantom(9, Kind.CROPPED, grid=COARSE)
    thick = make_phantom(9, Kind.THICK_SLICES, grid=COARSE)
    assert min(cropped.ct.shape) < 0.6 * min(plain.ct.shape)
    assert sum(cropped.volumes_ml().values()) < sum(plain.volumes_ml().values())
    assert max(thick.geometry.spacing_mm) >= 8.0
    assert thick.volumes_ml()["liver"] == pytest.approx(plain.volumes_ml()["liver"], rel=0.1)


def test_the_tail_holds_every_kind_and_leaves_ordinary_cases_as_they_were() -> None:
    plans = [case_plan(n, 4, 0.5, TAIL_KINDS) for n in range(1, 29)]
    assert {plan.kind for plan in plans} == set(Kind)
    assert [plan.seed for plan in plans] == [case_plan(n, 4, 0.5).seed for n in range(1, 29)]


@pytest.mark.parametrize("kind", HARD_KINDS)
def test_a_hard_case_shows_its_irregularity(kind: Kind) -> None:
    hard, plain = make_phantom(9, kind, grid=COARSE), make_phantom(9, grid=COARSE)
    now, before = hard.volumes_ml(), plain.volumes_ml()
    gas = (hard.truth == ABDOMEN_ATLAS["stomach"].label) & (hard.ct < -600)
    match kind:
        case Kind.ENLARGED_GALL_BLADDER:
            assert now["gall_bladder"] > 2.5 * before["gall_bladder"]
        case Kind.STOMACH_GAS:
            assert gas.sum() > 0.5 * (hard.truth == ABDOMEN_ATLAS["stomach"].label).sum()
        case Kind.ENLARGED_PANCREAS_TAIL:
            assert now["pancreas"] > 1.4 * before["pancreas"]
        case Kind.MISSING_KIDNEY:
            assert min(now["kidney_left"], now["kidney_right"]) == 0.0
            assert max(now["kidney_left"], now["kidney_right"]) > 0.0
        case Kind.OTHER_PHASE:
            assert hard.phase not in PHASE_SHARES
        case Kind.HEAVY_NOISE:
            inside = hard.truth == ABDOMEN_ATLAS["liver"].label
            same = plain.truth == ABDOMEN_ATLAS["liver"].label
            assert hard.ct[inside].std() > 3 * plain.ct[same].std()


def test_hounsfield_units_are_those_of_a_ct(ordinary: list[Phantom]) -> None:
    for phantom in ordinary:
        assert phantom.ct.dtype == np.int16
        assert phantom.ct.max() <= 3071
        corner = phantom.geometry.axis_map.to_canonical(phantom.ct)[0, 0, 0]
        assert corner in (-1024, -2000, -3024)
        in_view = phantom.ct[phantom.ct > -2000]
        assert -1024 <= in_view.min() < -900


def test_a_phantom_may_be_as_fine_as_a_clinical_ct() -> None:
    phantom = make_phantom(2, grid=PhantomGrid(columns=512, slice_mm=20.0))
    assert max(phantom.geometry.shape) == 512
    assert all(volume > 0 for volume in phantom.volumes_ml().values())


def test_implausible_grids_are_refused() -> None:
    for wrong in ({"columns": 4}, {"slice_mm": 0.0}, {"axis_codes": "RAA"}, {"axis_codes": "RA"}):
        with pytest.raises(InvalidInput):
            PhantomGrid(**wrong)  # type: ignore[arg-type]


def test_a_plan_spreads_hard_cases_evenly_and_ignores_the_number_of_cases() -> None:
    plans = [case_plan(number, seed=1, hard_share=0.25) for number in range(1, 49)]
    hard = [plan.kind for plan in plans if plan.kind is not Kind.ORDINARY]
    assert len(hard) == 12
    assert {kind: hard.count(kind) for kind in HARD_KINDS} == dict.fromkeys(HARD_KINDS, 2)
    assert len({plan.seed for plan in plans}) == 48
    assert {plan.seed for plan in plans}.isdisjoint(
        case_plan(number, seed=2).seed for number in range(1, 49)
    )
    with pytest.raises(InvalidInput):
        case_plan(0, seed=1)


def test_phantoms_are_written_in_the_atlas_layout(tmp_path: Path) -> None:
    done = []
    entries = write_phantoms(
        tmp_path / "ct", 2, 5, hard_share=0.5, truth_folder=tmp_path / "truth", grid=COARSE,
        on_progress=lambda now, total: done.append((now, total)),
    )  # fmt: skip
    assert done == [(1, 2), (2, 2)]
    assert [entry["kind"] == "ordinary" for entry in entries] == [True, False]
    plan = case_plan(1, 5, 0.5)
    phantom = make_phantom(plan.seed, plan.kind, grid=COARSE)
    folder = tmp_path / "ct" / "PHANTOM_00000001"
    ct = read_volume(folder / "ct.nii.gz")
    assert np.array_equal(ct.voxels, phantom.ct)
    assert ct.geometry.same_grid(phantom.geometry)
    combined = read_volume(tmp_path / "truth" / "PHANTOM_00000001" / "combined_labels.nii.gz")
    assert np.array_equal(combined.voxels, phantom.truth)
    for organ in ABDOMEN_ATLAS:
        mask = read_volume(folder / "segmentations" / f"{organ.name}.nii.gz")
        assert np.array_equal(mask.voxels, phantom.truth == organ.label)
        assert mask.geometry.same_grid(ct.geometry)
    index = json.loads((tmp_path / "ct" / "phantoms.json").read_text())
    assert index == json.loads((tmp_path / "truth" / "phantoms.json").read_text())
    assert index["cases"][0]["volumes_ml"] == phantom.volumes_ml()


def test_hard_cases_are_of_the_kinds_that_were_asked_for(tmp_path: Path) -> None:
    wanted = {"hard_share": 1.0, "kinds": (Kind.CHILD,), "labels": "none", "grid": COARSE}
    (entry,) = write_phantoms(tmp_path, 1, 5, **wanted)
    assert entry["kind"] == "child"
    with pytest.raises(Conflict):
        write_phantoms(tmp_path, 1, 5, hard_share=1.0, labels="none", grid=COARSE)


def test_without_labels_only_cts_are_written(tmp_path: Path) -> None:
    write_phantoms(tmp_path, 1, 5, labels="none", grid=COARSE)
    written = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert written == ["ct.nii.gz", "phantoms.json"]


def test_partial_datasets_hold_the_masks_of_their_organs_only(tmp_path: Path) -> None:
    write_phantoms(tmp_path, len(PARTIAL_DATASETS), 5, labels="partial", grid=COARSE)
    for dataset, organs in PARTIAL_DATASETS.items():
        (case,) = (tmp_path / dataset).iterdir()
        masks = {path.name.removesuffix(".nii.gz") for path in (case / "segmentations").iterdir()}
        assert masks == set(organs)


def test_a_second_call_goes_on_where_the_first_stopped(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "a", 1, 5, labels="none", grid=COARSE)
    first = tmp_path / "a" / "PHANTOM_00000001" / "ct.nii.gz"
    before = first.stat().st_mtime_ns
    # What a run that was killed leaves: a case that is in no list, and one without its CT.
    write_phantoms(tmp_path / "a", 2, 5, labels="none", grid=COARSE)
    (tmp_path / "a" / "PHANTOM_00000002" / "ct.nii.gz").unlink()
    write_phantoms(tmp_path / "a", 3, 5, labels="none", grid=COARSE)
    assert first.stat().st_mtime_ns == before
    write_phantoms(tmp_path / "b", 3, 5, labels="none", grid=COARSE)
    for name in ("PHANTOM_00000001", "PHANTOM_00000002", "PHANTOM_00000003"):
        resumed, straight = (tmp_path / run / name / "ct.nii.gz" for run in "ab")
        assert resumed.read_bytes() == straight.read_bytes()
    assert (tmp_path / "a" / "phantoms.json").read_text() == (
        tmp_path / "b" / "phantoms.json"
    ).read_text()


def test_a_folder_of_other_phantoms_is_left_alone(tmp_path: Path) -> None:
    write_phantoms(tmp_path, 1, 5, labels="none", grid=COARSE)
    with pytest.raises(Conflict):
        write_phantoms(tmp_path, 1, 6, labels="none", grid=COARSE)


def test_geometry_of_a_phantom_is_a_valid_grid(ordinary: list[Phantom]) -> None:
    for phantom in ordinary:
        assert isinstance(phantom.geometry, VolumeGeometry)
        assert phantom.geometry.shape == phantom.ct.shape == phantom.truth.shape
