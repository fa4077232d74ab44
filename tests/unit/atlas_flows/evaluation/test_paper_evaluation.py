"""The paper's evaluation on a small real store with a known truth: figures worked out by hand."""

from __future__ import annotations

import csv
import json
import shutil
import tracemalloc
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from atlas_core.catalog import Catalog, tables
from atlas_core.errors import GridMismatch, NotFound
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import write_volume
from atlas_core.model_spec import ensemble_key
from atlas_core.records import Label, LabelSource, Reading
from atlas_core.review import LabelVersions
from atlas_flows.cli import app
from atlas_flows.commands import evaluation
from atlas_flows.evaluation import (
    EvaluationScope,
    LabelKind,
    PaperEvaluation,
    RegionRule,
    evaluate_all,
    iterations_of,
    open_ground_truth,
)
from atlas_flows.evaluation.attention_regions import MIN_REGION_ML, PAPER_THRESHOLD
from atlas_flows.evaluation.case_measures import MeasurementOptions, measure_cases
from atlas_flows.evaluation.ground_truth import GroundTruthCase, NothingToCompare, require_cases
from atlas_flows.reports import build_loop_report
from judged_store import (
    CASES,
    GEOMETRY,
    ORGANS,
    SHAPE,
    START,
    JudgedStore,
    assemble,
    case_id,
    models,
    submit,
    true_labels,
    write_judged_store,
)
from playwright.sync_api import Browser
from typer.testing import CliRunner

pytestmark = pytest.mark.slow

LIVER_DICE_M0 = [1 / 3, 4 / 7, *[18 / 19] * 18]
LIVER_DICE_M1 = [3 / 4, 14 / 17, *[1.0] * 18]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> JudgedStore:
    return write_judged_store(tmp_path_factory.mktemp("judged"))


@pytest.fixture(scope="module")
def evaluated(judged: JudgedStore) -> PaperEvaluation:
    with judged.open_catalog() as catalog:
        return evaluate_all(
            catalog, judged.store, open_ground_truth(judged.truth, catalog, judged.store)
        )


def _run(judged: JudgedStore, *arguments: str) -> str:
    wide = {"COLUMNS": "240"}  # headings are looked for in one piece
    result = CliRunner().invoke(app, ["--home", str(judged.home), *arguments], env=wide)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def _json(judged: JudgedStore, *arguments: str) -> Any:
    return json.loads(_run(judged, "evaluate", *arguments, "--truth", str(judged.truth), "--json"))


# --- one value -----------------------------------------------------------------------------------


def test_attention_against_errors_by_hand(evaluated: PaperEvaluation) -> None:
    # At M1 two livers are wrong and both attended; the spleen's attended corner is right.
    (table,) = evaluated.detection
    rows = {row.organ: row for row in table.organs}
    assert (rows["liver"].sensitivity, rows["liver"].precision) == (1.0, 1.0)
    assert rows["liver"].sensitivity_by_case.count == 2
    assert (rows["spleen"].sensitivity, rows["spleen"].precision) == (None, 0.0)
    assert (rows["kidney_left"].sensitivity, rows["kidney_left"].precision) == (None, None)
    assert table.overall.precision == pytest.approx(2 / 22)
    assert rows["liver"].counts.error_ml == pytest.approx(70.0)


def test_each_iteration_in_a_line(evaluated: PaperEvaluation) -> None:
    before, after = evaluated.by_iteration
    assert (before.title, after.title) == ("M0", "M1")
    # 20 livers and the kidney that is not there; 20 attended corners of spleens.
    assert before.sensitivity == 1.0
    assert before.precision == pytest.approx(21 / 41)
    # 80 ml of 80 + 60 + 18 · 10 + 10.
    assert before.error_in_top == pytest.approx(80 / 330)
    assert before.error_in_top_by_chance == pytest.approx(1 / 20)
    assert (before.false_positive_rate, after.false_positive_rate) == (0.5, 0.0)
    assert after.mean_dice is not None
    assert before.mean_dice is not None
    assert before.mean_dice_assembled is not None
    assert before.mean_dice < before.mean_dice_assembled
    assert before.mean_dice < after.mean_dice


def test_labels_before_and_after_by_hand(evaluated: PaperEvaluation) -> None:
    pseudo, assembled = evaluated.iterations
    (liver,) = (row for row in pseudo.organs if row.organ == "liver")
    first, second = liver.dice
    assert first.spread.mean == pytest.approx(np.mean(LIVER_DICE_M0))
    assert second.spread.mean == pytest.approx(np.mean(LIVER_DICE_M1))
    assert second.change is not None
    assert second.change.mark == "***"
    # anna drew the first liver before M1 scored.
    (liver,) = (row for row in assembled.organs if row.organ == "liver")
    assert liver.dice[0].spread.mean == pytest.approx(np.mean([1.0, *LIVER_DICE_M0[1:]]))
    assert liver.nsd[0].spread.count == CASES
    # The kidney counts where truth or label has it: 18 cases, and the one where M0 invents it.
    (kidney,) = (row for row in pseudo.organs if row.organ == "kidney_left")
    assert [figure.spread.count for figure in kidney.dice] == [19, 18]
    assert kidney.dice[0].spread.mean == pytest.approx(18 / 19)


def test_assembled_is_the_map_that_is_released(tmp_path: Path, judged: JudgedStore) -> None:
    """anna's liver of the second case covers the spleen too, which berta drew later: assembly gives
    the overlap to the newer label, so that liver and spleen of the released map are right."""
    shutil.copytree(judged.home, tmp_path / "home")
    copy = JudgedStore(tmp_path / "home", judged.truth, judged.ensembles)
    truth = true_labels(1)
    spleen, liver = (truth == ORGANS[name].label for name in ("spleen", "liver"))
    with copy.open_catalog() as catalog:
        versions = LabelVersions(catalog, clock=lambda: START + timedelta(days=11))
        submit(versions, copy.store, "anna", 1, "liver", liver | spleen)
        versions = LabelVersions(catalog, clock=lambda: START + timedelta(days=12))
        submit(versions, copy.store, "berta", 1, "spleen", spleen)
        # In force, but not assembled yet: a release would hold the earlier map.
        before = _assembled(copy, catalog, 1)
        assemble(catalog, copy.store, 1, 1)
        after = _assembled(copy, catalog, 1)
    assert before == {"liver": LIVER_DICE_M1[1], "spleen": 1.0, "kidney_left": 1.0}
    # The file of the revised liver alone would have 2 · 1000 / (1000 + 1100).
    assert after == {"liver": 1.0, "spleen": 1.0, "kidney_left": 1.0}


def _assembled(judged: JudgedStore, catalog: Catalog, number: int) -> dict[str, float | None]:
    """Dice of the assembled map of one case at M1, by organ."""
    cases = open_ground_truth(judged.truth, catalog, judged.store).cases()
    found = measure_cases(
        [case for case in cases if case.case.id == case_id(number)],
        catalog,
        judged.store,
        Reading.PAPER,
        judged.ensembles[1],
        MeasurementOptions(attention=False, nsd=False),
    )
    (case,) = found
    return {row.organ: row.dice for row in case.agreement(LabelKind.ASSEMBLED).organs}


def test_what_was_never_assembled_is_left_out_and_said(tmp_path: Path, judged: JudgedStore) -> None:
    shutil.copytree(judged.home, tmp_path / "home")
    copy = JudgedStore(tmp_path / "home", judged.truth, judged.ensembles)
    with copy.open_catalog() as catalog:
        m1 = START + timedelta(days=10)
        with catalog.transaction(write=True) as connection:
            late = tables.assemblies.c.created_at >= m1
            connection.execute(sa.delete(tables.assemblies).where(late))
        truth = open_ground_truth(copy.truth, catalog, copy.store)
        found = evaluate_all(catalog, copy.store, truth, EvaluationScope(nsd=False))
    pseudo, assembled = found.iterations
    assert (pseudo.not_assembled, assembled.not_assembled) == ((0, 0), (0, CASES))
    first, second = assembled.mean_dice
    assert (first, second) == (found.by_iteration[0].mean_dice_assembled, None)
    assert first is not None
    assert f"left out: {CASES} of M1" in build_loop_report(found)
    result = CliRunner().invoke(
        app,
        ["--home", str(copy.home), "evaluate", "labels", "--no-nsd", "--truth", str(copy.truth)],
    )
    assert f"left out: {CASES} of M1" in result.stderr


def test_architectures_and_annotators_by_hand(evaluated: PaperEvaluation) -> None:
    drawn = evaluated.architectures
    assert drawn is not None
    assert drawn.raters == ("nnunet", "unet", "ensemble mean", "true label")
    assert drawn.value("nnunet", "true label") == 1.0
    assert drawn.value("unet", "ensemble mean") == 1.0
    assert drawn.value("nnunet", "unet", "liver") == pytest.approx(np.mean(LIVER_DICE_M1))
    people = evaluated.annotators
    assert people is not None
    assert people.raters == ("anna", "berta", "pseudo label", "true label")
    assert people.organs == ("liver",)
    assert people.value("anna", "berta") == pytest.approx(18 / 19)
    assert people.value("anna", "pseudo label") == pytest.approx(3 / 4)
    assert people.value("berta", "pseudo label") == pytest.approx(2 / 3)
    assert people.value("true label", "anna") == 1.0


def test_efficiency_with_recorded_times(evaluated: PaperEvaluation) -> None:
    work = evaluated.efficiency
    assert (work.cases, work.organs, work.missing_labels, work.revised_cases) == (20, 9, 180, 2)
    assert work.recorded is not None
    assert (work.recorded.tasks, work.recorded.minutes) == (2, 3.0)
    assert work.factor_recorded == pytest.approx(20 * 9 * 60 / 3)


def test_the_value_survives_its_json(evaluated: PaperEvaluation) -> None:
    assert PaperEvaluation.model_validate_json(evaluated.model_dump_json()) == evaluated
    assert evaluated.left_out == {}


def test_without_a_truth_parts_are_left_out_and_say_so(judged: JudgedStore) -> None:
    with judged.open_catalog() as catalog:
        found = evaluate_all(catalog, judged.store, None)
        originals = evaluate_all(
            catalog, judged.store, open_ground_truth(None, catalog, judged.store)
        )
    assert set(found.left_out) == {"detection", "error_found", "iterations", "false_positives"}
    assert "no truth was given" in found.left_out["detection"]
    assert "no scored case has a known truth" in originals.left_out["detection"]
    assert found.architectures is not None
    assert found.architectures.raters == ("nnunet", "unet", "ensemble mean")
    assert found.annotators is not None


def test_an_empty_store_says_what_to_do(tmp_path: Path, judged: JudgedStore) -> None:
    with (
        Catalog.open(f"sqlite:///{tmp_path / 'empty.sqlite'}") as catalog,
        pytest.raises(NotFound, match="atlasloop score"),
    ):
        evaluate_all(catalog, judged.store, None)
    with judged.open_catalog() as catalog, pytest.raises(NothingToCompare, match="0 scored cases"):
        require_cases(open_ground_truth(judged.truth, catalog, judged.store), set())


def test_a_case_that_one_model_scored_alone_is_no_iteration(
    tmp_path: Path, judged: JudgedStore
) -> None:
    shutil.copytree(judged.home, tmp_path / "home")
    copy = JudgedStore(tmp_path / "home", judged.truth, judged.ensembles)
    alone = ensemble_key([models(1)[1]])
    with copy.open_catalog() as catalog:
        score = catalog.score(case_id(0), Reading.PAPER, judged.ensembles[1])
        assert score is not None
        earlier = score.created_at - timedelta(days=1)
        catalog.record_score(score.model_copy(update={"ensemble": alone, "created_at": earlier}))
        assert list(catalog.ensembles(Reading.PAPER)) == [
            judged.ensembles[0], alone, judged.ensembles[1],
        ]  # fmt: skip
        turns = iterations_of(catalog, EvaluationScope())
        assert [turn.ensemble for turn in turns] == list(judged.ensembles)
        asked = iterations_of(catalog, EvaluationScope(ensembles=(alone,)))
        assert [turn.ensemble for turn in asked] == [alone]
        with pytest.raises(NotFound, match="unknown"):
            iterations_of(catalog, EvaluationScope(ensembles=("unknown",)))


# --- truth ----------------------------------------------------------------------------------------


def test_original_labels_are_a_truth_too(tmp_path: Path, judged: JudgedStore) -> None:
    shutil.copytree(judged.home, tmp_path / "home")
    copy = JudgedStore(tmp_path / "home", judged.truth, judged.ensembles)
    with copy.open_catalog() as catalog:
        path = copy.store.path("cases/case_03/labels/liver/original.nii.gz")
        path.parent.mkdir(parents=True)
        write_volume(path, true_labels(3), GEOMETRY)
        label = Label(
            case_id=case_id(3),
            organ="liver",
            source=LabelSource.ORIGINAL,
            path=copy.store.relative(path),
            value=5,
            sha256="1" * 64,
            voxels=1000,
            volume_ml=100,
            created_at=evaluation_time(catalog),
        )
        catalog.add_labels([label])
        by_original = evaluate_all(
            catalog, copy.store, open_ground_truth(None, catalog, copy.store)
        )
        by_folder = open_ground_truth(judged.truth, catalog, copy.store).cases()
    assert by_original.cases == 1
    assert by_original.iterations[0].mean_dice == (pytest.approx(18 / 19), 1.0)
    # The atlas holds that very label: it is not compared with itself.
    assert by_original.iterations[1].mean_dice == (None, None)
    # With a folder the organ is left out, as it is in the list.
    assert "liver" not in by_folder[3].organs
    assert "liver" in by_folder[4].organs


def evaluation_time(catalog: Catalog) -> Any:
    return catalog.case(case_id(3)).imported_at


def test_truth_on_another_grid_is_that_of_another_case(tmp_path: Path, judged: JudgedStore) -> None:
    shutil.copytree(judged.truth, tmp_path / "truth")
    other = VolumeGeometry.from_array(SHAPE, np.diag([9.0, 5.0, 2.0, 1.0]))
    write_volume(tmp_path / "truth" / case_id(2) / "combined_labels.nii.gz", true_labels(2), other)
    with judged.open_catalog() as catalog:
        known = open_ground_truth(tmp_path / "truth", catalog, judged.store).cases()
        # It is told from another case of that name by its grid.
        assert case_id(2) not in {one.case.id for one in known}
        assert case_id(3) in {one.case.id for one in known}


def test_a_pseudo_label_on_another_grid_names_its_case(tmp_path: Path, judged: JudgedStore) -> None:
    shutil.copytree(judged.home, tmp_path / "home")
    copy = JudgedStore(tmp_path / "home", judged.truth, judged.ensembles)
    path = copy.store.pseudo_label_path(case_id(1), Reading.PAPER, copy.ensembles[1])
    other = VolumeGeometry.from_array(SHAPE, np.diag([9.0, 5.0, 2.0, 1.0]))
    write_volume(path, true_labels(1), other)
    with copy.open_catalog() as catalog, pytest.raises(GridMismatch, match=case_id(1)):
        evaluate_all(catalog, copy.store, open_ground_truth(judged.truth, catalog, copy.store))


def test_memory_is_that_of_one_case(judged: JudgedStore) -> None:
    with judged.open_catalog() as catalog:
        known = open_ground_truth(judged.truth, catalog, judged.store).cases()

        def peak(cases: list[GroundTruthCase]) -> int:
            what = MeasurementOptions(rule=RegionRule(), nsd=False)
            key = judged.ensembles[0]
            tracemalloc.start()
            for _ in measure_cases(cases, catalog, judged.store, Reading.PAPER, key, what):
                pass
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            return most

        peak(known[:1])  # what is imported on first use
        assert peak(known[:1] * 30) < 1.3 * peak(known[:1])


# --- commands -------------------------------------------------------------------------------------


def test_defaults_that_commands_repeat() -> None:
    assert (evaluation.MIN_ML, evaluation.THRESHOLD) == (MIN_REGION_ML, PAPER_THRESHOLD)


def test_every_command_in_json(judged: JudgedStore) -> None:
    attention = _json(judged, "attention", "--ensemble", judged.ensembles[0])
    assert attention["paper"]["overall"]["precision"] == pytest.approx(21 / 41)
    labels = _json(judged, "labels", "--no-nsd")
    assert labels["pseudo"]["titles"] == ["M0", "M1"]
    assert labels["pseudo"]["organs"][0]["nsd"][0]["spread"]["count"] == 0
    found = _json(judged, "error-found")
    assert found["total_wrong_ml"] == pytest.approx(70)
    false = _json(judged, "false-positives", "--ensemble", judged.ensembles[0])
    assert false["overall"] == {
        "organ": "all",
        "cases_without": 2,
        "cases_with_false": 1,
        "rate": 0.5,
        "regions": 1,
        "ml": pytest.approx(10),
    }
    people = _json(judged, "annotators")
    assert people["raters"] == ["anna", "berta", "pseudo label", "true label"]
    # Everything is kept: no service is asked.
    assert _json(judged, "architectures")["cases"] == CASES
    work = json.loads(_run(judged, "evaluate", "efficiency", "--json"))
    assert work["revised_cases"] == 2


def test_regions_by_other_rules(judged: JudgedStore) -> None:
    old = ("--ensemble", judged.ensembles[0])
    # The corners of the spleen have 0.8 ml and byte 50, what is wrong byte 100.
    for rule in (("--min-region-ml", "1"), ("--threshold", "0.5")):
        assert _json(judged, "attention", *old, *rule)["paper"]["overall"]["precision"] == 1.0
    everywhere = _json(judged, "attention", *old, "--threshold", "0", "--share", "0.5")
    assert everywhere["paper"]["overall"]["precision"] == 0.0


def test_every_command_as_table_and_csv(judged: JudgedStore, tmp_path: Path) -> None:
    truth = ("--truth", str(judged.truth))
    for name, words in (
        ("attention", "errors found"),
        ("labels", "M1 Dice (%)"),
        ("annotators", "berta"),
        ("architectures", "ensemble mean"),
        ("error-found", "by chance"),
        ("false-positives", "cases without it"),
        ("efficiency", "as recorded"),
    ):
        arguments = ("evaluate", name, *(() if name == "efficiency" else truth))
        assert words in _run(judged, *arguments), name
        file = tmp_path / f"{name}.csv"
        assert str(file.name) in _run(judged, *arguments, "--csv", str(file)).replace("\n", "")
        rows = list(csv.DictReader(file.open(encoding="utf-8")))
        assert rows
        assert all(None not in row for row in rows)


# --- the page -------------------------------------------------------------------------------------


class _Page(HTMLParser):
    """Collects tags that are not closed, ids, links inside the page, and words."""

    VOID = frozenset({"meta", "link", "br", "img", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids |= {str(found["id"])} if "id" in found else set()
        href = found.get("href")
        if tag == "a" and href and href.startswith("#"):
            self.links.add(href[1:])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_is_whole_and_asks_nobody(judged: JudgedStore, tmp_path: Path) -> None:
    file = tmp_path / "evaluation.html"
    _run(judged, "report", "--evaluation", "--truth", str(judged.truth), "--output", str(file))
    page = file.read_text(encoding="utf-8")
    parsed = _Page(page)
    assert parsed.open == []
    assert parsed.links <= parsed.ids
    text = " ".join(" ".join(parsed.words).split())
    assert "Left out" not in text
    for words in ("top 5 %: 57% of the error", "anna", "M1 NSD (%)", "9.1", "times faster"):
        assert words in text
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_the_page_without_truth_says_what_is_left_out(judged: JudgedStore) -> None:
    with judged.open_catalog() as catalog:
        page = build_loop_report(evaluate_all(catalog, judged.store, None), notes=("a < b",))
    assert page.count("Left out: no truth was given (--truth).") == 4
    assert "a &lt; b" in page
    assert _Page(page).open == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_fits_its_window(
    chromium: Browser, evaluated: PaperEvaluation, tmp_path: Path, scheme: Any, width: int
) -> None:
    file = tmp_path / "page.html"
    file.write_text(build_loop_report(evaluated), encoding="utf-8")
    context = chromium.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
    )
    requests: list[str] = []
    context.on("request", lambda request: requests.append(request.url))
    page = context.new_page()
    page.goto(file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(251, 251, 249)", "dark": "rgb(18, 23, 26)"}[scheme]
    # Every word of every drawing stands inside it.
    outside = page.evaluate(
        """() => [...document.querySelectorAll('svg.plot text')].filter(word => {
             const a = word.getBoundingClientRect();
             const b = word.closest('svg').getBoundingClientRect();
             return a.left < b.left - 1 || a.right > b.right + 1 || a.bottom > b.bottom + 1
                 || a.top < b.top - 1;
           }).map(word => word.textContent)"""
    )
    assert outside == []
    assert requests == [file.as_uri()]
    context.close()
