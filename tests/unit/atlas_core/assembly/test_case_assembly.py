"""Assembly of stored cases: laws of the choice, effects in store and catalog, bad input."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from atlas_core.assembly import Assemblies, Assembly, PostProcessing, choose_labels, read_assembled
from atlas_core.assembly.post_processing import post_processed
from atlas_core.catalog import newest_scores
from atlas_core.errors import CorruptFile, InvalidInput, NotFound, UnknownLabel
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import Volume, read_label, write_volume
from atlas_core.importing import import_folder
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.records import Label, LabelSource, Reading
from atlas_flows.assembly import AssemblyRequest, case_assembly
from atlas_flows.assembly.case_assembly import AssemblyRun
from atlas_flows.runs import CaseOutcome, Outcome, ProgressCounter
from labelled_site import (
    EPOCH,
    GEOMETRY,
    NNUNET,
    SHAPE,
    UNET,
    UNET_1,
    LabelledSite,
    all_organs,
    box,
    cube,
    label_map,
    open_site,
)

ORIGINAL, REVISED, PSEUDO = LabelSource.ORIGINAL, LabelSource.REVISED, LabelSource.PSEUDO


@pytest.fixture
def site(tmp_path: Path) -> Iterator[LabelledSite]:
    site = open_site(tmp_path)
    with site.catalog:
        yield site


def run(site: LabelledSite, **request: object) -> list[CaseOutcome]:
    """Plan and assemble, as the flow does."""
    asked = AssemblyRequest(**request)  # type: ignore[arg-type]
    plan = case_assembly.plan_assembly(asked, site.catalog, site.store)
    progress = ProgressCounter(len(plan.cases), lambda *_: None)
    shard = AssemblyRun(asked, site.catalog, site.store, progress)
    return case_assembly.assemble_shard(shard, plan.cases)


def assembled(site: LabelledSite, case_id: str = "a", **request: object) -> Assembly:
    outcomes = run(site, cases=(case_id,), **request)
    assert all(outcome.good for outcome in outcomes), outcomes
    found = Assemblies(site.catalog).current(case_id)
    assert found is not None
    return found


def voxels(site: LabelledSite, assembly: Assembly) -> np.ndarray:
    return read_assembled(site.store, site.catalog.case(assembly.case_id), assembly).voxels


def where(site: LabelledSite, assembly: Assembly, organ: str) -> np.ndarray:
    return voxels(site, assembly) == ABDOMEN_ATLAS[organ].label


def test_each_organ_comes_from_its_best_source_and_the_row_says_which(site: LabelledSite) -> None:
    site.add_case("a")
    site.add_prediction("a", all_organs())
    liver = site.add_label("a", "liver", ORIGINAL, cube(0, 2))
    site.add_label("a", "liver", REVISED, cube(0, 3))
    spleen = site.add_label("a", "spleen", REVISED, all_organs(1)["spleen"])
    found = assembled(site)
    assert {organ.organ: organ.source for organ in found.organs} == {
        **dict.fromkeys(ABDOMEN_ATLAS.names, PSEUDO), "liver": ORIGINAL, "spleen": REVISED,
    }  # fmt: skip
    assert np.array_equal(where(site, found, "liver"), cube(0, 2) != 0)
    assert found.by_organ["liver"].label_sha256 == liver.sha256
    assert found.by_organ["spleen"].author == "anna"
    assert found.by_organ["spleen"].label_sha256 == spleen.sha256
    assert found.by_organ["aorta"].models == (UNET, NNUNET)
    assert found.missing == ()
    for organ in found.organs:  # what the row says is what the file holds
        count = int(np.count_nonzero(where(site, found, organ.organ)))
        assert (organ.voxels, organ.volume_ml) == (count, count * GEOMETRY.voxel_ml)
    beside = json.loads((site.store.path(found.path).parent / "provenance.json").read_text())
    assert beside == json.loads(found.model_dump_json(exclude={"created_at"}))


def test_the_map_is_uint8_on_the_grid_of_the_ct(site: LabelledSite) -> None:
    site.add_case("a")
    site.add_prediction("a", all_organs())
    label = read_label(site.store.path(assembled(site).path))
    assert label.voxels.dtype == np.uint8
    assert label.geometry == GEOMETRY
    assert np.array_equal(label.voxels, label_map(all_organs()))


def test_an_empty_original_clears_what_the_models_saw(site: LabelledSite) -> None:
    site.add_case("a")
    site.add_prediction("a", all_organs())
    site.add_label("a", "gall_bladder", ORIGINAL, box())
    found = assembled(site)
    assert not where(site, found, "gall_bladder").any()
    assert found.by_organ["gall_bladder"].source is ORIGINAL
    assert found.by_organ["gall_bladder"].voxels == 0


def test_where_masks_overlap_the_better_source_has_the_voxel(site: LabelledSite) -> None:
    site.add_case("a")
    site.add_prediction("a", {**all_organs(), "aorta": cube(0, 6)})
    site.add_label("a", "stomach", ORIGINAL, cube(4, 8))
    site.add_label("a", "liver", REVISED, cube(2, 5))
    found = assembled(site)
    assert np.array_equal(where(site, found, "stomach"), cube(4, 8) != 0)
    assert np.array_equal(where(site, found, "liver"), cube(2, 4) != 0)
    assert found.by_organ["liver"].overlaps == np.count_nonzero(cube(4, 5))
    assert found.by_organ["stomach"].overlaps == 0


def test_of_two_revised_labels_the_newer_has_the_voxel(site: LabelledSite) -> None:
    """Whose author saw the older one. The scheme's order alone would favour the liver."""
    for case_id, (liver_hour, stomach_hour) in {"a": (1, 2), "b": (2, 1)}.items():
        site.add_case(case_id)
        site.add_prediction(case_id, all_organs())
        site.add_label(case_id, "liver", REVISED, cube(0, 4), hour=liver_hour)
        site.add_label(case_id, "stomach", REVISED, cube(2, 6), hour=stomach_hour)
    assert np.array_equal(where(site, assembled(site, "a"), "stomach"), cube(2, 6) != 0)
    assert np.array_equal(where(site, assembled(site, "b"), "stomach"), cube(4, 6) != 0)


def test_the_choice_does_not_depend_on_the_order_of_the_labels(site: LabelledSite) -> None:
    case = site.add_case("a")
    labels = [
        site.add_label("a", "liver", REVISED, cube(0, 3), hour=1),
        site.add_label("a", "liver", REVISED, cube(0, 4), hour=2),
        site.add_label("a", "aorta", ORIGINAL, cube(1, 2)),
        *(site.add_label("a", name, ORIGINAL, box()) for name in ABDOMEN_ATLAS.names[1:4]),
        *(site.add_label("a", name, ORIGINAL, box()) for name in ABDOMEN_ATLAS.names[5:]),
    ]
    digests = set()
    for order in [*permutations(labels[:4]), *permutations(labels[-4:])]:
        rest = [label for label in labels if label not in order]
        inputs = choose_labels(case, [*order, *rest], None, {}, ABDOMEN_ATLAS)
        digests.add(inputs.sha256)
        assert next(lb for lb in inputs.labels if lb.organ == "liver") is labels[1]
    assert len(digests) == 1


def test_assembling_again_changes_nothing(site: LabelledSite) -> None:
    site.add_case("a")
    site.add_prediction("a", all_organs())
    first = assembled(site)
    assert run(site) == []  # up to date: not planned
    forced = assembled(site, force=True)
    assert forced.model_copy(update={"created_at": first.created_at}) == first
    assert len(Assemblies(site.catalog).history("a")) == 2


def test_a_new_revision_and_another_ensemble_are_assembled_anew(site: LabelledSite) -> None:
    site.add_case("a")
    site.add_case("b")
    for case_id in ("a", "b"):
        site.add_prediction(case_id, all_organs())
    run(site)
    before = assembled(site, "a")
    site.add_label("a", "liver", REVISED, cube(0, 3), hour=1)
    assert [outcome.case_id for outcome in run(site)] == ["a"]
    revised = assembled(site, "a")
    assert revised.by_organ["liver"].source is REVISED
    assert revised.path != before.path
    assert voxels(site, before).any()  # the older map stays readable
    ensemble = site.add_prediction("b", all_organs(1), (UNET_1,), hour=5)
    assert [outcome.case_id for outcome in run(site)] == ["b"]
    assert assembled(site, "b").ensemble == ensemble
    older = assembled(site, "b", models=("unet@0", "nnunet"))
    assert older.by_organ["liver"].models == (UNET, NNUNET)


def test_the_newest_ensemble_of_each_case_counts(site: LabelledSite) -> None:
    site.add_case("a")
    site.add_case("b")
    both = site.add_prediction("a", all_organs(), hour=1)
    single = site.add_prediction("a", all_organs(1), (UNET_1,), hour=2)
    site.add_prediction("b", all_organs(), hour=3)
    released = site.add_prediction("b", all_organs(), (UNET_1,), reading=Reading.RELEASED, hour=9)

    def newest(reading: Reading = Reading.PAPER, *models: str) -> dict[str, str]:
        found = newest_scores(site.catalog, ["a", "b"], reading, models)
        return {case_id: ensemble for case_id, (ensemble, _) in found.items()}

    assert newest() == {"a": single, "b": both}
    assert newest(Reading.RELEASED) == {"b": released}
    assert newest(Reading.PAPER, "nnunet", "unet") == {"a": both, "b": both}
    assert newest(Reading.PAPER, "unet") == {"a": single}
    assert newest(Reading.PAPER, "unet@0") == {}
    with pytest.raises(InvalidInput, match="one version per model"):
        newest(Reading.PAPER, "unet@0", "unet@1")


def test_a_lost_or_damaged_map_is_made_again(site: LabelledSite) -> None:
    site.add_case("a")
    site.add_prediction("a", all_organs())
    first = assembled(site)
    site.store.path(first.path).unlink()
    assert assembled(site).sha256 == first.sha256
    site.store.path(first.path).write_bytes(b"not a label map")
    with pytest.raises(CorruptFile, match="not the file on record"):
        voxels(site, first)
    assert np.array_equal(voxels(site, assembled(site, force=True)), label_map(all_organs()))


def test_masks_are_written_on_request(site: LabelledSite) -> None:
    site.add_case("a")
    site.add_prediction("a", all_organs())
    found = assembled(site)
    folder = site.store.path(found.path).parent
    assert not (folder / "segmentations").exists()
    assert [outcome.case_id for outcome in run(site, masks=True)] == ["a"]
    assert run(site, masks=True) == []
    for organ, mask in all_organs().items():
        stored = read_label(folder / "segmentations" / f"{organ}.nii.gz")
        assert np.array_equal(stored.voxels, mask)


def test_post_processing_touches_pseudo_labels_only(site: LabelledSite) -> None:
    crumbs = cube(0, 4) | box((8, 9), (2, 3), (2, 3))
    rules = {name: PostProcessing(largest=1) for name in ("liver", "spleen", "stomach")}
    site.add_case("a")
    site.add_prediction("a", {"liver": crumbs, "spleen": box(), "stomach": box()})
    for organ, source in (("spleen", ORIGINAL), ("stomach", REVISED)):
        site.add_label("a", organ, source, cube(5, 7) | box((11, 12), (9, 10), (7, 8)))
    plain = assembled(site)
    found = assembled(site, post_processing=rules)
    assert found.inputs_sha256 != plain.inputs_sha256
    assert np.array_equal(where(site, found, "liver"), cube(0, 4) != 0)
    assert found.by_organ["liver"].removed_voxels == 1
    assert found.by_organ["liver"].post_processing == rules["liver"]
    for organ in ("spleen", "stomach"):
        assert found.by_organ[organ].post_processing is None
        assert np.array_equal(where(site, found, organ), where(site, plain, organ))
    assert run(site, post_processing=rules) == []


def test_components_are_kept_by_size() -> None:
    mask = box((0, 1), (0, 1), (0, 1)) | box((2, 4), (0, 1), (0, 1)) | box((6, 9), (0, 1), (0, 1))

    def kept(**rule: object) -> list[int]:
        found = post_processed(mask, PostProcessing.model_validate(rule), 0.5)
        assert not (found & (mask == 0)).any()
        return np.flatnonzero(found[:, 0, 0]).tolist()

    assert kept() == [0, 2, 3, 6, 7, 8]
    assert kept(largest=1) == [6, 7, 8]
    assert kept(largest=2) == [2, 3, 6, 7, 8]
    assert kept(min_ml=1.0) == [2, 3, 6, 7, 8]
    assert kept(min_ml=1.1) == [6, 7, 8]
    assert kept(largest=3, min_ml=2.0) == []
    assert not post_processed(box(), PostProcessing(largest=1), 1.0).any()


def test_of_equal_components_the_same_one_stays_in_any_memory_order() -> None:
    mask = box((0, 2), (0, 1), (0, 1)) | box((5, 7), (4, 5), (3, 4))
    first = post_processed(np.asfortranarray(mask), PostProcessing(largest=1), 1.0)
    second = post_processed(np.ascontiguousarray(mask), PostProcessing(largest=1), 1.0)
    assert np.array_equal(first, second)
    assert first[0, 0, 0]
    assert first.sum() == 2


def test_a_case_that_is_not_scored_needs_labels_of_all_organs(site: LabelledSite) -> None:
    site.add_case("a")
    (outcome,) = run(site)
    assert outcome.outcome is Outcome.FAILED
    assert "not scored" in outcome.message
    assert "atlasloop score" in outcome.message
    for organ, mask in all_organs().items():
        site.add_label("a", organ, ORIGINAL, mask)
    found = assembled(site)
    assert found.ensemble is None
    assert np.array_equal(voxels(site, found), label_map(all_organs()))


def test_a_scored_case_may_lack_organs_that_no_model_predicts(site: LabelledSite) -> None:
    site.add_case("a")
    site.add_prediction("a", {"liver": cube(0, 3)})
    found = assembled(site)
    assert [organ.organ for organ in found.organs] == ["liver"]
    assert "spleen" in found.missing
    plan = case_assembly.plan_assembly(AssemblyRequest(), site.catalog, site.store)
    sources = {organ.organ: organ for organ in case_assembly.organ_sources(plan, site.catalog)}
    assert (sources["liver"].pseudo, sources["spleen"].missing) == (1, 1)


def _delete_ct(site: LabelledSite) -> None:
    site.store.ct_path("a").unlink()


def _delete_label(site: LabelledSite) -> None:
    site.store.path(site.catalog.labels("a", ORIGINAL)[0].path).unlink()


def _exchange_label(site: LabelledSite) -> None:
    write_volume(site.store.path(site.catalog.labels("a", ORIGINAL)[0].path), cube(0, 1), GEOMETRY)


def _truncate_prediction(site: LabelledSite) -> None:
    path = site.store.path(site.catalog.labels("a", PSEUDO)[0].path)
    path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_delete_ct, "the CT is gone"),
        (_delete_label, r"liver \(original\): the file is gone"),
        (_exchange_label, r"liver \(original\): this is not the file on record"),
        (_truncate_prediction, r"\(pseudo\): this is not the file on record"),
    ],
)
def test_a_spoilt_case_is_named_and_the_others_go_on(
    site: LabelledSite, spoil: Callable[[LabelledSite], None], says: str
) -> None:
    for case_id in ("a", "b"):
        site.add_case(case_id)
        site.add_prediction(case_id, all_organs())
        site.add_label(case_id, "liver", ORIGINAL, cube(0, 3))
    spoil(site)
    first, second = run(site)
    assert (first.outcome, second.outcome) == (Outcome.FAILED, Outcome.ASSEMBLED)
    assert first.case_id == "a"
    assert re.search(says, first.message), first.message
    assert Assemblies(site.catalog).current("a") is None
    assert not list((site.store.root / "cases/a").glob("assembled/*"))
    assert not list((site.store.root / ".incoming").iterdir())


def test_a_case_that_is_deleted_in_between_is_named(site: LabelledSite) -> None:
    site.add_case("a")
    site.add_prediction("a", all_organs())
    request = AssemblyRequest()
    plan = case_assembly.plan_assembly(request, site.catalog, site.store)
    site.catalog.delete_case("a")
    progress = ProgressCounter(1, lambda *_: None)
    (outcome,) = case_assembly.assemble_shard(
        AssemblyRun(request, site.catalog, site.store, progress), plan.cases
    )
    assert (outcome.outcome, outcome.message) == (
        Outcome.FAILED, "the case was deleted meanwhile",
    )  # fmt: skip


def test_what_cannot_be_planned_is_refused(site: LabelledSite) -> None:
    def plan(**request: object) -> object:
        asked = AssemblyRequest(**request)  # type: ignore[arg-type]
        return case_assembly.plan_assembly(asked, site.catalog, site.store)

    with pytest.raises(NotFound, match="no case to assemble"):
        plan()
    site.add_case("a")
    with pytest.raises(NotFound, match="no dataset 'other'"):
        plan(dataset="other")
    with pytest.raises(NotFound, match="no such case"):
        plan(cases=("b",))
    with pytest.raises(UnknownLabel, match="prostate"):
        plan(post_processing={"prostate": PostProcessing(largest=1)})
    with pytest.raises(InvalidInput, match="malformed model"):
        plan(models=("UNET",))


def test_a_label_on_another_grid_is_refused(site: LabelledSite) -> None:
    site.add_case("a")
    site.add_prediction("a", all_organs())
    shifted = VolumeGeometry.from_array(SHAPE, np.diag([-5.0, -5.0, 9.0, 1.0]))
    stored = site.store.write_label("a", "liver", ORIGINAL, Volume(cube(0, 2), shifted))
    site.catalog.add_labels(
        [
            Label(
                case_id="a", organ="liver", source=ORIGINAL, path=stored.path, value=1,
                sha256=stored.sha256, voxels=1, volume_ml=1.0, created_at=EPOCH,
            )
        ]
    )  # fmt: skip
    (outcome,) = run(site)
    assert outcome.outcome is Outcome.FAILED
    assert "liver (original)" in outcome.message


def test_what_import_says_of_kidneys_and_absent_organs_is_assembled(
    site: LabelledSite, tmp_path: Path
) -> None:
    """One label for both kidneys comes as two; an organ that the dataset annotates and this patient
    lacks clears what the models saw."""
    left, right = box((8, 10), (4, 6), (2, 5)), box((1, 3), (4, 6), (2, 5))
    folder = tmp_path / "incoming" / "p1"
    folder.mkdir(parents=True)
    geometry = VolumeGeometry.from_array(SHAPE, np.diag([-20.0, -5.0, 10.0, 1.0]))
    hu = np.random.default_rng(1).integers(-1000, 200, SHAPE).astype(np.int16)
    write_volume(folder / "ct.nii.gz", hu, geometry)
    # AbdomenCT-1K: 1 liver, 2 kidneys, 3 spleen, 4 pancreas. This patient has no spleen.
    values = cube(4, 7) + 2 * (left | right)
    write_volume(folder / "segmentation.nii.gz", np.asfortranarray(values), geometry)
    summary = import_folder(
        folder.parent, "ak", "abdomenct-1k", catalog=site.catalog, store=site.store
    )
    (taken,) = summary.taken
    case = site.catalog.case(taken.case_id)
    originals = {lb.organ: lb for lb in site.catalog.labels(case.id, ORIGINAL)}
    assert originals["spleen"].voxels == 0
    predicted = {"spleen": box((0, 2), (0, 2), (0, 2)), "aorta": box((0, 1), (9, 10), (7, 8))}
    site.add_prediction(case.id, predicted, geometry=geometry)
    found = assembled(site, case.id)
    # x runs against the first axis here: small indices are the patient's right.
    assert np.array_equal(where(site, found, "kidney_right"), right != 0)
    assert np.array_equal(where(site, found, "kidney_left"), left != 0)
    assert not where(site, found, "spleen").any()
    assert np.array_equal(where(site, found, "aorta"), predicted["aorta"] != 0)
