"""Scoring without Prefect and without a network: which cases, how patiently, and what is recorded.

The service is played by a script of answers; everything else is real. The same functions run
against the real service in tests/integration/test_score_flow.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from atlas_core.catalog import Catalog
from atlas_core.errors import InvalidInput, NotFound, Unavailable
from atlas_core.model_spec import ModelRef as CoreRef
from atlas_core.model_spec import ensemble_key
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.records import Case, Dataset, LabelSource, Reading
from atlas_core.store import CaseStore
from atlas_flows.runs import CaseOutcome, Outcome, ProgressCounter
from atlas_flows.scoring import ScoreRequest, case_scoring
from atlas_flows.scoring.case_scoring import Patience, ScoringEnsemble, ScoringRun
from atlasloop.answers import (
    CaseResult,
    EnsembleInfo,
    Limits,
    ModelInfo,
    ModelRef,
    OrganResult,
    ServiceInfo,
    Timing,
)
from atlasloop.client import AttentionServiceError

IMPATIENT = Patience(total_s=0.2, first_s=0.001, longest_s=0.01)
AWAY = AttentionServiceError(grpc.StatusCode.UNAVAILABLE, "Triton is away")
BAD = AttentionServiceError(grpc.StatusCode.DATA_LOSS, "its CT is truncated")


def _model(name: str, version: int = 0) -> ModelInfo:
    return ModelInfo(
        name=name,
        version=version,
        sha256=f"{len(name)}{version}".ljust(64, "0"),
        architecture=name,
        organs=("liver",),
        spacing_mm=(1.5, 1.5, 1.5),
        patch=(96, 96, 96),
    )


INFO = ServiceInfo(
    service_version="0",
    models=(_model("nnunet"), _model("unet", 1)),
    older_models=(_model("unet", 0),),
    organs=("liver",),
    labels=(5,),
    readings=("paper", "released"),
    limits=Limits(1, 1, 1, 1, 1, 1),
    attention_scale=1 / 136,
    organ_scheme=ABDOMEN_ATLAS.name,
    organ_scheme_sha256=ABDOMEN_ATLAS.digest,
)


class ScriptedService:
    """Answers by the next entry of the case's script, then well; writes into the store. Of what it
    did well, `lost_answers` do not arrive."""

    def __init__(self, store: CaseStore, script: dict[str, list[Exception]] | None = None) -> None:
        self.store = store
        self.script = script or {}
        self.infos: list[ServiceInfo] = []
        self.lost_answers: list[Exception] = []
        self.calls: list[tuple[str, tuple[str, ...]]] = []
        self._lock = threading.Lock()

    def info(self, *, timeout_s: float | None = None) -> ServiceInfo:
        return self.infos.pop(0) if self.infos else INFO

    def score_case(
        self,
        case_id: str,
        reading: str = "paper",
        *,
        models: Sequence[str] = (),
        ensemble: str = "",
        newer_than: int = 0,
        on_progress: Callable[[int, int], None] | None = None,
        timeout_s: float | None = None,
    ) -> CaseResult:
        with self._lock:
            self.calls.append((case_id, tuple(models)))
            waiting = self.script.get(case_id)
            if waiting:
                raise waiting.pop(0)
        refs = case_scoring.select_ensemble(INFO, models).models
        key = (case_id, Reading(reading), ensemble_key(refs))
        stored = self.store.result_number(*key)
        found = stored > newer_than
        if not found:
            with self.store.new_prediction(*key, after=stored) as draft:
                draft.pseudo_label_path.write_bytes(b"mask" * draft.number)
                draft.result_path.write_text("{}")
        if self.lost_answers:
            raise self.lost_answers.pop()
        return CaseResult(
            case_id=case_id,
            ensemble=key[2],
            reading="released" if reading == "released" else "paper",
            models=tuple(ModelRef(r.name, r.version, r.sha256) for r in refs),
            organs=(
                OrganResult("liver", 12.5 * self.store.result_number(*key), 0.5, 40, 1.6, 0.1, 1.6),
            ),
            timing=Timing(1.0, 0.5, 3, 1),
            already_scored=found,
            number=self.store.result_number(*key),
        )


class Bench:
    """A catalog with cases, a store, and runs over them."""

    def __init__(self, folder: Path) -> None:
        self.catalog = Catalog.open(f"sqlite:///{folder / 'catalog.sqlite'}")
        self.store = CaseStore(folder / "store")
        for dataset in ("a", "b"):
            self.catalog.add_dataset(Dataset(name=dataset))
        for number in range(6):
            self.catalog.add_case(
                Case(
                    id=f"case{number}",
                    dataset="ab"[number % 2],
                    content_sha256=f"{number:064x}",
                    shape=(2, 2, 2),
                    affine=((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)),
                    imported_at=datetime.now(UTC),
                )
            )
        self.ensemble = case_scoring.select_ensemble(INFO, ())

    def plan(self, request: ScoreRequest | None = None) -> case_scoring.ScoringPlan:
        return case_scoring.plan_scoring(
            request or ScoreRequest(), self.ensemble, self.catalog, self.store
        )

    def in_force(self, case_id: str) -> tuple[int, float]:
        """Number of the result, and attention size of the liver."""
        score = self.catalog.score(case_id, Reading.PAPER, self.ensemble.key)
        assert score is not None
        return score.number, score.organs[0].attention_voxels

    def run(
        self, service: ScriptedService, request: ScoreRequest | None = None
    ) -> list[CaseOutcome]:
        plan = self.plan(request)
        progress = ProgressCounter(len(plan.cases), lambda done, total, outcome: None)
        run = ScoringRun(plan, service, self.catalog, self.store, progress, IMPATIENT)
        return case_scoring.score_shard(run, plan.cases)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_the_newest_models_are_the_ensemble() -> None:
    names = [str(ref)[:8] for ref in case_scoring.select_ensemble(INFO, ()).models]
    assert names == ["nnunet@0", "unet@1-4"]
    assert [ref.version for ref in case_scoring.select_ensemble(INFO, ("unet@0",)).models] == [0]
    assert [ref.version for ref in case_scoring.select_ensemble(INFO, ("unet",)).models] == [1]


def test_models_that_are_not_in_service_are_refused() -> None:
    with pytest.raises(NotFound, match=r"unet@7.*unet@0"):
        case_scoring.select_ensemble(INFO, ("unet@7",))
    with pytest.raises(InvalidInput, match="one version per model"):
        case_scoring.select_ensemble(INFO, ("unet@0", "unet@1"))


def test_requests_choose_cases(bench: Bench) -> None:
    assert bench.plan().cases == tuple(f"case{n}" for n in range(6))
    assert bench.plan(ScoreRequest(dataset="b")).cases == ("case1", "case3", "case5")
    assert bench.plan(ScoreRequest(limit=2)).cases == ("case0", "case1")
    assert bench.plan(ScoreRequest(cases=("case4", "case1"))).cases == ("case4", "case1")
    assert bench.plan(ScoreRequest(cases=("case4", "case1"), dataset="b")).cases == ("case1",)
    with pytest.raises(NotFound):
        bench.plan(ScoreRequest(cases=("nobody",)))


def test_a_dataset_that_does_not_exist_is_refused(bench: Bench) -> None:
    with pytest.raises(NotFound, match="no dataset"):
        bench.plan(ScoreRequest(dataset="typo"))


def test_scores_and_pseudo_labels_are_recorded(bench: Bench) -> None:
    service = ScriptedService(bench.store)
    outcomes = bench.run(service)
    assert [outcome.outcome for outcome in outcomes] == [Outcome.SCORED] * 6
    assert all(models == ("nnunet@0", "unet@1") for _, models in service.calls)
    score = bench.catalog.score("case0", Reading.PAPER, bench.ensemble.key)
    assert score is not None
    assert score.organs[0].attention_voxels == 12.5
    (label,) = bench.catalog.labels("case0", LabelSource.PSEUDO)
    assert (label.organ, label.value, label.voxels, label.volume_ml) == ("liver", 5, 40, 1.6)
    assert bench.store.path(label.path).read_bytes() == b"mask"
    assert label.models == bench.ensemble.models


def test_a_case_of_an_absurd_spacing_is_not_sent(bench: Bench) -> None:
    """Imported before there was a bound: refused here, with what to do, and the others go on."""
    bench.catalog.add_case(
        bench.catalog.case("case0").model_copy(
            update={
                "id": "huge",
                "content_sha256": "f" * 64,
                "shape": (64, 64, 4),
                "affine": ((100, 0, 0, 0), (0, 100, 0, 0), (0, 0, 100, 0), (0, 0, 0, 1)),
            }
        )
    )
    service = ScriptedService(bench.store)
    failed = [o for o in bench.run(service) if o.outcome is not Outcome.SCORED]
    assert [outcome.case_id for outcome in failed] == ["huge"]
    assert "100×100×100 mm" in failed[0].message
    assert "huge" not in [case_id for case_id, _ in service.calls]


def test_what_is_scored_is_skipped_unless_forced(bench: Bench) -> None:
    bench.run(ScriptedService(bench.store), ScoreRequest(limit=4))
    plan = bench.plan()
    assert (plan.cases, plan.skipped) == (("case4", "case5"), 4)
    assert bench.plan(ScoreRequest(force=True)).cases == tuple(f"case{n}" for n in range(6))
    assert bench.plan(ScoreRequest(reading=Reading.RELEASED)).skipped == 0


def test_force_predicts_again(bench: Bench) -> None:
    service = ScriptedService(bench.store)
    bench.run(service)
    again = bench.run(service, ScoreRequest(force=True))
    assert [outcome.outcome for outcome in again] == [Outcome.SCORED] * 6
    assert bench.in_force("case0") == (2, 25.0)
    old, new = bench.catalog.labels("case0", LabelSource.PSEUDO)
    assert bench.store.path(old.path).read_bytes() == b"mask"  # what was made from it can be seen
    assert bench.store.path(new.path).read_bytes() == b"maskmask"
    assert bench.plan().cases == ()


@pytest.mark.parametrize("trouble", [BAD, AWAY])
def test_a_forced_run_that_fails_or_ends_early_leaves_what_was_there(
    bench: Bench, trouble: Exception
) -> None:
    bench.run(ScriptedService(bench.store))
    service = ScriptedService(bench.store, {"case1": [trouble] * 10_000})
    outcomes = {o.case_id: o for o in bench.run(service, ScoreRequest(force=True))}
    assert not outcomes["case1"].good
    assert bench.in_force("case0") == (2, 25.0)
    assert bench.in_force("case1") == (1, 12.5)
    assert bench.store.has_prediction("case1", Reading.PAPER, bench.ensemble.key)
    assert bench.plan().cases == ()  # all of them count as scored
    assert len(bench.catalog.ranking(Reading.PAPER)) == 6


def test_a_result_that_a_killed_run_did_not_record_is_recorded_by_the_next(bench: Bench) -> None:
    service = ScriptedService(bench.store)
    bench.run(service)
    service.score_case("case3", models=("nnunet", "unet"), newer_than=1)
    assert bench.in_force("case3") == (1, 12.5)
    assert bench.plan().cases == ("case3",)
    (outcome,) = bench.run(service)
    assert outcome.outcome is Outcome.FOUND
    assert bench.in_force("case3") == (2, 25.0)


def test_an_answer_that_was_lost_is_not_predicted_again(bench: Bench) -> None:
    bench.run(ScriptedService(bench.store))
    service = ScriptedService(bench.store)
    service.lost_answers = [AWAY]
    (outcome,) = bench.run(service, ScoreRequest(force=True, limit=1))
    assert outcome.good
    assert bench.in_force("case0") == (2, 25.0)


def test_a_prediction_without_its_row_is_only_recorded(bench: Bench) -> None:
    """What a kill between prediction and catalog leaves."""
    bench.run(ScriptedService(bench.store))
    bench.catalog.delete_score("case2", Reading.PAPER, bench.ensemble.key)
    (outcome,) = bench.run(ScriptedService(bench.store))
    assert (outcome.case_id, outcome.outcome) == ("case2", Outcome.FOUND)
    assert bench.plan().cases == ()


def test_a_row_without_its_prediction_is_made_again(bench: Bench) -> None:
    bench.run(ScriptedService(bench.store))
    bench.store.delete_prediction("case2", Reading.PAPER, bench.ensemble.key)
    (outcome,) = bench.run(ScriptedService(bench.store))
    assert (outcome.case_id, outcome.outcome) == ("case2", Outcome.SCORED)
    assert bench.plan().cases == ()


def test_a_service_that_comes_back_is_waited_for(bench: Bench) -> None:
    service = ScriptedService(bench.store, {"case1": [AWAY, AWAY, AWAY]})
    outcomes = bench.run(service)
    assert all(outcome.good for outcome in outcomes)
    assert [case_id for case_id, _ in service.calls].count("case1") == 4


def test_a_model_that_is_being_loaded_again_is_waited_for(bench: Bench) -> None:
    gone = AttentionServiceError(grpc.StatusCode.NOT_FOUND, "model unet@1 is not in service")
    service = ScriptedService(bench.store, {"case1": [gone, gone]})
    service.infos = [replace(INFO, models=INFO.models[:1])] * 2
    assert all(outcome.good for outcome in bench.run(service))


def test_a_model_that_comes_back_right_after_a_refusal_is_not_a_failed_case(bench: Bench) -> None:
    gone = AttentionServiceError(grpc.StatusCode.NOT_FOUND, "model unet@1 is not in service")
    assert all(o.good for o in bench.run(ScriptedService(bench.store, {"case1": [gone]})))


def test_a_case_that_the_service_does_not_know_fails(bench: Bench) -> None:
    unknown = AttentionServiceError(grpc.StatusCode.NOT_FOUND, "no CT of this case")
    service = ScriptedService(bench.store, {"case1": [unknown] * 2})
    failed = [outcome for outcome in bench.run(service) if not outcome.good]
    assert [(f.case_id, f.outcome) for f in failed] == [("case1", Outcome.FAILED)]


def test_the_whole_ensemble_is_waited_for(bench: Bench) -> None:
    service = ScriptedService(bench.store)
    service.infos = [replace(INFO, models=INFO.models[:1])] * 2
    on_record = {"": ("nnunet", "unet"), "trial": ("nnunet",)}
    found = case_scoring.await_ensemble(service, ScoreRequest(), on_record, IMPATIENT)
    assert [ref.name for ref in found.models] == ["nnunet", "unet"]
    service.infos = [replace(INFO, models=INFO.models[:1])] * 10_000
    with pytest.raises(Unavailable, match="not in service: unet"):
        case_scoring.await_ensemble(service, ScoreRequest(), on_record, IMPATIENT)
    # Who names models means them.
    by_hand = ScoreRequest(models=("nnunet",))
    alone = case_scoring.await_ensemble(service, by_hand, on_record, IMPATIENT)
    assert [ref.name for ref in alone.models] == ["nnunet"]


TRIAL = EnsembleInfo("trial", (ModelRef("nnunet", 0, INFO.models[0].sha256),), (1.5, 1.5, 2.0))


def test_an_ensemble_is_scored_by_its_name_and_on_its_grid() -> None:
    info = replace(INFO, ensembles=(TRIAL,), ensemble_in_use="site")
    named = case_scoring.select_ensemble(info, (), "trial")
    assert (named.name, [ref.name for ref in named.models]) == ("trial", ["nnunet"])
    assert named.key.endswith("+grid-1.5-1.5-2")
    assert case_scoring.select_ensemble(info, ("nnunet",)).name == ""
    with pytest.raises(NotFound, match=r"gone is not loaded.*trial"):
        case_scoring.select_ensemble(info, (), "gone")
    with pytest.raises(InvalidInput, match="exclude each other"):
        case_scoring.select_ensemble(info, ("nnunet",), "trial")


def test_an_ensemble_that_changes_meanwhile_leaves_no_mixed_result(bench: Bench) -> None:
    service = ScriptedService(bench.store)
    changed = replace(bench.ensemble, name="site", fusion_spacing_mm=(1.5, 1.5, 2.0))
    plan = case_scoring.plan_scoring(ScoreRequest(limit=1), changed, bench.catalog, bench.store)
    progress = ProgressCounter(1, lambda done, total, outcome: None)
    run = ScoringRun(plan, service, bench.catalog, bench.store, progress)
    (outcome,) = case_scoring.score_shard(run, plan.cases)
    assert outcome.outcome is Outcome.FAILED
    assert "the ensemble changed while the run lasted" in outcome.message
    assert bench.catalog.scored_cases(Reading.PAPER, bench.ensemble.key) == {}


def test_a_bad_case_does_not_stop_the_others(bench: Bench) -> None:
    service = ScriptedService(bench.store, {"case1": [BAD]})
    outcomes = {outcome.case_id: outcome for outcome in bench.run(service)}
    assert outcomes["case1"].outcome is Outcome.FAILED
    assert outcomes["case1"].message == "its CT is truncated"
    assert sum(outcome.good for outcome in outcomes.values()) == 5
    assert bench.plan().cases == ("case1",)


def test_a_service_that_stays_away_ends_the_run(bench: Bench) -> None:
    service = ScriptedService(bench.store, {"case2": [AWAY] * 10_000})
    outcomes = bench.run(service)
    assert [outcome.outcome for outcome in outcomes] == [
        *[Outcome.SCORED] * 2,
        *[Outcome.NOT_TRIED] * 4,
    ]
    # The others are not even tried: they would wait as long.
    assert {case_id for case_id, _ in service.calls} == {"case0", "case1", "case2"}


def test_answers_without_files_are_not_believed(bench: Bench) -> None:
    class Forgetful(ScriptedService):
        def score_case(self, case_id: str, reading: str = "paper", **rest: object) -> CaseResult:  # type: ignore[override]
            result = super().score_case(case_id, reading, models=("nnunet", "unet"))
            self.store.delete_prediction(case_id, Reading.PAPER, result.ensemble)
            return result

    outcomes = bench.run(Forgetful(bench.store), ScoreRequest(limit=1))
    assert outcomes[0].outcome is Outcome.FAILED
    assert "not in the case store" in outcomes[0].message
    assert bench.catalog.scored_cases(Reading.PAPER, bench.ensemble.key) == {}


def test_pauses_grow_and_are_bounded() -> None:
    patience = Patience(first_s=1.0, longest_s=8.0)
    for attempt, longest in enumerate((1, 2, 4, 8, 8, 8)):
        assert longest / 2 <= patience.pause_s(attempt) <= longest
    assert patience.pause_s(100_000) <= 8.0


def test_a_run_that_is_stopped_does_not_sit_out_its_pauses(bench: Bench) -> None:
    plan = bench.plan(ScoreRequest(limit=1))
    service = ScriptedService(bench.store, {"case0": [AWAY] * 10})
    patience = Patience(total_s=1e6, first_s=1e5, longest_s=1e5)
    progress = ProgressCounter(1, lambda done, total, outcome: None)
    run = ScoringRun(plan, service, bench.catalog, bench.store, progress, patience)
    worker = threading.Thread(target=case_scoring.score_shard, args=(run, plan.cases))
    worker.start()
    run.stop.set()
    worker.join(timeout=30)
    assert not worker.is_alive()


def test_progress_is_told_in_order_from_many_threads() -> None:
    seen: list[int] = []
    progress = ProgressCounter(200, lambda done, total, outcome: seen.append(done))
    outcome = CaseOutcome(case_id="c", outcome=Outcome.SCORED)
    threads = [
        threading.Thread(target=lambda: [progress.add(outcome) for _ in range(50)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == list(range(1, 201))


def test_the_same_models_in_any_order_are_the_same_ensemble() -> None:
    refs = tuple(CoreRef(name=name, version=0, sha256="0" * 64) for name in ("b", "a"))
    assert ScoringEnsemble(refs, {}).key == ScoringEnsemble(refs[::-1], {}).key


def test_unavailable_names_what_to_look_at() -> None:
    with pytest.raises(Unavailable, match="atlasloop status"):
        case_scoring._patiently(lambda: (_ for _ in ()).throw(AWAY), IMPATIENT, threading.Event())
