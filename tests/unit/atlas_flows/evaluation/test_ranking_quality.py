"""The comparison of the priority list with true errors: laws, and a list worked out by hand."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from atlas_core.catalog import Catalog
from atlas_core.errors import InvalidInput, NotFound
from atlas_core.imaging import content_sha256, write_volume
from atlas_core.importing import import_folder
from atlas_core.model_spec import ModelRef, ensemble_key
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.phantoms import PhantomGrid, write_phantoms
from atlas_core.records import Case, Dataset, OrganScore, RankBy, RankedCase, Reading, Score
from atlas_core.store import CaseStore
from atlas_flows.evaluation import (
    case_errors,
    dice_by_organ,
    evaluate_ranking,
    kinds_of_cases,
    truth_files,
)
from atlas_flows.evaluation.ranking_quality import CaseError, e_aurc
from atlas_flows.scoring.priority_list import cases_in

REF = ModelRef(name="unet", version=0, sha256="0" * 64)


def _ranked(name: str, size: float, apart: float, organs: tuple[str, ...]) -> RankedCase:
    return RankedCase(
        rank=1,
        case_id=name,
        dataset="d",
        attention_voxels=0,
        attention_ml=size,
        relative_attention=0,
        disagreement=apart,
        organs=tuple(
            OrganScore(organ=organ, attention_voxels=0, attention_ml=0, pseudo_label_ml=1)
            for organ in organs
        ),
    )


def _case(
    name: str, apart: float, dice: float, kind: str = "ordinary", size: float = 0.0
) -> CaseError:
    ranked = _ranked(name, size, apart, ("liver",))
    return CaseError(ranked=ranked, kind=kind, dice={"liver": dice})


def test_dice_of_present_organs_only() -> None:
    pseudo = np.array([0, 1, 1, 2, 0, 3], np.uint8)
    truth = {"a": np.array([0, 1, 0, 0, 0, 0], bool), "c": np.zeros(6, bool)}
    dice = dice_by_organ(pseudo, truth, {"a": 1, "b": 2, "c": 3, "d": 4})
    # a: 2·1/(2+1); b and c were predicted but are not there; d is in neither and does not count.
    assert dice == {"a": pytest.approx(2 / 3), "b": 0.0, "c": 0.0}


def test_organs_that_are_not_there_are_counted_apart() -> None:
    ranked = _ranked("a", 0, 0, ("liver", "spleen", "kidney_left"))
    nothing = CaseError(ranked=ranked, kind="ordinary", dice={})
    assert nothing.error == 0.0
    # A speck of a kidney that was removed does not weigh as much as a liver.
    false = CaseError(
        ranked=ranked,
        kind="missing_kidney",
        dice={"liver": 0.8, "kidney_left": 0.0},
        absent=frozenset({"kidney_left", "spleen"}),
    )
    assert false.error == pytest.approx(0.2)
    result = evaluate_ranking([false, _case("b", 1, 0.5)])
    assert (result.absent, result.absent_predicted) == (2, 1)


def test_a_list_in_the_order_of_errors_is_perfect() -> None:
    cases = [_case(f"c{n:02d}", apart=n / 20, size=-n, dice=1 - n / 20) for n in range(20)]
    result = evaluate_ranking(cases)
    perfect, reverse = result.order(RankBy.DISAGREEMENT), result.order(RankBy.SIZE)
    assert perfect.spearman is not None and perfect.e_aurc is not None
    assert perfect.spearman.value == pytest.approx(1.0)
    assert perfect.e_aurc.value == pytest.approx(0.0)
    assert perfect.hard.hard_found == perfect.hard.hard_found_at_best
    assert reverse.spearman is not None and reverse.e_aurc is not None
    assert reverse.spearman.value == pytest.approx(-1.0)
    assert reverse.e_aurc.value > 1.0
    assert result.per_case[0]["case"] == "c19"
    assert evaluate_ranking(cases, RankBy.SIZE).per_case[0]["case"] == "c00"
    assert result.left_out == (RankBy.ATTENDED,)
    with pytest.raises(InvalidInput, match="20 of 20 cases"):
        evaluate_ranking(cases, RankBy.ATTENDED)


def test_a_random_list_has_an_area_of_one_on_average() -> None:
    random = np.random.default_rng(3)
    errors = np.tile(random.random(40) ** 3, (4000, 1))
    assert e_aurc(random.random(errors.shape), errors).mean() == pytest.approx(1.0, abs=0.02)


def test_hard_is_what_the_models_get_wrong() -> None:
    """Not what was meant to be: `meant` is no harder than any ordinary case."""
    ordinary = [_case(f"e{n:02d}", apart=n / 100, dice=0.9 - n / 1000) for n in range(18)]
    hard = [_case("h1", 1.0, 0.1, "child"), _case("meant", 0.9, 0.95, "stomach_gas")]
    result = evaluate_ranking([*ordinary, *hard])
    found = result.order(RankBy.DISAGREEMENT)
    assert {row["case"] for row in result.per_case if row["hard"]} == {"h1", "e17"}
    assert (result.cases, found.hard.cases, found.hard.hard_total) == (20, 2, 2)
    assert found.hard.hard_found == 1
    assert found.hard.hard_found_by_chance == pytest.approx(0.2)
    assert found.hard.hard_found_at_best == 2
    total = sum(case.error for case in (*ordinary, *hard))
    five, ten = found.top
    assert (five.cases, ten.cases) == (1, 2)
    assert five.error_share == pytest.approx(0.9 / total)
    assert ten.error_share == pytest.approx(0.95 / total)
    assert ten.error_share_by_chance == pytest.approx(0.1)
    assert ten.error_share_at_best == pytest.approx((0.9 + 0.117) / total)


def test_where_nothing_varies_there_is_no_correlation() -> None:
    result = evaluate_ranking([_case("a", 1, 0.5), _case("b", 2, 0.5)])
    found = result.order(RankBy.DISAGREEMENT)
    assert (found.spearman, found.e_aurc) == (None, None)
    assert json.loads(result.model_dump_json())["orders"][0]["spearman"] is None


def test_nothing_to_evaluate_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no case to evaluate"):
        evaluate_ranking([])


def test_cases_with_original_labels_only_are_refused_in_words() -> None:
    case = CaseError(ranked=_ranked("a", 0, 0, ()), kind="ordinary", dice={})
    with pytest.raises(InvalidInput, match="every organ of these cases has an original label"):
        evaluate_ranking([case, case])


@pytest.mark.parametrize(
    ("share", "total", "cases"),
    [(0.05, 0, 0), (0.05, 1, 1), (0.05, 20, 1), (0.05, 40, 2), (0.05, 41, 3), (1.0, 7, 7)],
)
def test_cases_in_a_share(share: float, total: int, cases: int) -> None:
    assert cases_in(share, total) == cases


def _scored(
    tmp_path: Path, phantoms: Path, *, wrong: str, original: str | None = None
) -> tuple[Catalog, CaseStore]:
    """A catalog in which the phantoms were predicted perfectly, but for `wrong` in the first."""
    from atlas_core.imaging import read_label, read_volume
    from atlas_core.records import Label, LabelSource

    catalog = Catalog.open(f"sqlite:///{tmp_path / 'catalog.sqlite'}")
    store = CaseStore(tmp_path / "store")
    catalog.add_dataset(Dataset(name="d"))
    for number, true_case in enumerate(truth_files(phantoms)):
        ct = read_volume(phantoms / true_case.name / "ct.nii.gz")
        sha256 = content_sha256(ct)
        case = Case(
            id=f"d_{sha256[:12]}",
            dataset="d",
            content_sha256=sha256,
            shape=ct.geometry.shape,
            affine=ct.geometry.affine,
            source=f"{true_case.name}/ct.nii.gz",
            imported_at=datetime.now(UTC),
        )
        labels = [
            Label(
                case_id=case.id,
                organ=original,
                source=LabelSource.ORIGINAL,
                path="somewhere.nii.gz",
                value=1,
                sha256="1" * 64,
                voxels=1,
                volume_ml=1,
                created_at=datetime.now(UTC),
            )
        ] if original else []  # fmt: skip
        catalog.add_case(case, labels)
        assert true_case.combined is not None
        pseudo = read_label(true_case.combined).voxels.copy()
        if number == 0:
            pseudo[pseudo == ABDOMEN_ATLAS[wrong].label] = 0
        with store.new_prediction(case.id, Reading.PAPER, ensemble_key([REF])) as draft:
            write_volume(draft.pseudo_label_path, pseudo, ct.geometry)
            draft.result_path.write_text("{}")
        sizes = [
            OrganScore(organ=name, attention_voxels=10 - number, attention_ml=1, pseudo_label_ml=1)
            for name in ABDOMEN_ATLAS.names
        ]
        score = Score(
            case_id=case.id,
            reading=Reading.PAPER,
            ensemble=ensemble_key([REF]),
            models=(REF,),
            organs=tuple(sizes),
            seconds=1,
            created_at=datetime.now(UTC),
        )
        catalog.record_score(score)
    return catalog, store


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(
        folder,
        2,
        5,
        hard_share=0.5,
        labels="none",
        truth_folder=folder / "truth",
        grid=PhantomGrid(columns=32, slice_mm=20),
    )
    return folder


def test_errors_are_found_by_content_and_by_name(tmp_path: Path, phantoms: Path) -> None:
    catalog, store = _scored(tmp_path, phantoms, wrong="liver")
    with catalog:
        for folder in (phantoms, phantoms / "truth"):  # with CTs: by content; without: by name
            errors = list(case_errors(folder, catalog, store, Reading.PAPER))
            assert len(errors) == 2
            assert errors[0].dice["liver"] == 0.0
            assert all(value == 1.0 for value in errors[1].dice.values())
        assert sorted(kinds_of_cases(phantoms, catalog).values()) == sorted(
            error.kind for error in errors
        )


def test_phantoms_of_another_run_share_names_but_not_kinds(tmp_path: Path, phantoms: Path) -> None:
    catalog, store = _scored(tmp_path, phantoms, wrong="liver")
    with catalog:
        before = kinds_of_cases(phantoms, catalog)
        other = tmp_path / "other"
        write_phantoms(other, 2, 6, labels="none", grid=PhantomGrid(columns=32, slice_mm=20))
        import_folder(other, "other", None, catalog=catalog, store=store)
        assert len(list(catalog.cases())) == 4
        assert kinds_of_cases(phantoms, catalog) == before


def test_organs_with_an_original_label_are_not_compared(tmp_path: Path, phantoms: Path) -> None:
    catalog, store = _scored(tmp_path, phantoms, wrong="liver", original="liver")
    with catalog:
        errors = list(case_errors(phantoms, catalog, store, Reading.PAPER))
    assert all("liver" not in error.dice for error in errors)
    assert all(error.error == 0.0 for error in errors)


def test_a_folder_without_truth_is_refused(tmp_path: Path, phantoms: Path) -> None:
    with pytest.raises(NotFound, match=r"phantoms\.json"):
        truth_files(tmp_path)
    (tmp_path / "phantoms.json").write_bytes((phantoms / "phantoms.json").read_bytes())
    with pytest.raises(NotFound, match="no true masks"):
        truth_files(tmp_path)
