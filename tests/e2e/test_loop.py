"""The loop as people run it: started in Prefect, revised over HTTP, killed twice, carried on.

Real parts throughout: Triton, attention service, review service, Prefect's server with its
automation, and the process that serves the flows. The annotator is the simulated one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from atlas_core.catalog import Catalog, evaluations, promotions, training_labels
from atlas_core.loop import Iterations, steps_done
from atlas_core.records import IterationState, LabelSource, Reading
from atlas_core.review import TaskFilter
from atlas_core.review.views import RevisionViews
from atlas_embedded.components import review_token
from atlas_embedded.settings import EmbeddedSettings
from atlas_embedded.stack import down, up
from atlas_embedded.triton_models import repository_of
from atlas_flows.cli import app
from atlas_flows.demos.simulated_annotator import (
    ACCOUNT,
    AnnotatorPolicy,
    PhantomLabels,
    ReviewApi,
    annotate,
)
from prefect_api import ask_prefect
from stack import Stack, free_settings
from typer.testing import CliRunner

pytestmark = pytest.mark.stack

MODELS = ("small_a", "small_b")
SMALL = ("channels=[8,16]", "patch=[32,32,32]", "spacing_mm=[9,9,9]", "steps=3")
"""Of the demo U-Net: what takes seconds. What it learns in three steps is not looked at."""

CASES = 8
REVISED = 2

COMPLETED, CRASHED = "COMPLETED", "CRASHED"


@dataclass(frozen=True)
class Site:
    """A running stack with phantoms: the dataset `work` without labels, `taught`, which version 0
    learnt from, and `held_out`, which later versions are judged on, with all."""

    stack: Stack
    catalog: Catalog
    phantoms: Path

    @property
    def settings(self) -> EmbeddedSettings:
        return self.stack.settings

    def start(self, flow: str = "iterate", **parameters: Any) -> str:
        """As the form of the Prefect UI does; id of the run."""
        deployment = self._ask(f"/deployments/name/{flow}/{flow}")["id"]
        wish = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        return str(self._ask(f"/deployments/{deployment}/create_flow_run", wish)["id"])

    def run(self, run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self._ask(f"/flow_runs/{run_id}")
        return found

    def runs(self, mode: str) -> list[str]:
        """Ids of the runs of `iterate` that were started with this mode, oldest first."""
        asked = {"flows": {"name": {"any_": ["iterate"]}}, "sort": "EXPECTED_START_TIME_ASC"}
        found = self._ask("/flow_runs/filter", asked)
        return [run["id"] for run in found if run["parameters"].get("mode") == mode]

    def running(self) -> list[str]:
        """Names of all runs that the UI shows as running."""
        asked = {"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}}
        return [run["name"] for run in self._ask("/flow_runs/filter", asked)]

    def await_end(self, run_id: str) -> dict[str, Any]:
        ended = {COMPLETED, CRASHED, "FAILED", "CANCELLED"}
        await_that(lambda: self.run(run_id)["state_type"] in ended)
        return self.run(run_id)

    def kill_run(self, ready: Callable[[], bool]) -> None:
        """SIGKILL to the process of the run under way as soon as it is `ready`."""
        await_that(ready)
        pid = self.stack.status()["flows"].pid
        assert pid is not None
        children = psutil.Process(pid).children(recursive=True)
        assert children, "no run is under way"
        for process in children:
            process.kill()
        psutil.wait_procs(children)

    def steps(self) -> dict[str, dict[str, Any]]:
        return steps_done(self.catalog, 0) if Iterations(self.catalog).all() else {}

    def scored(self) -> dict[str, str]:
        """Case → when it was scored."""
        ensemble = self.catalog.latest_ensemble(Reading.PAPER, "work")
        if ensemble is None:
            return {}
        found = {}
        for case in self.catalog.cases("work"):
            score = self.catalog.score(case.id, Reading.PAPER, ensemble)
            if score is not None:
                found[case.id] = score.created_at.isoformat()
        return found

    def _ask(self, path: str, body: object = None) -> Any:
        return ask_prefect(self.settings, path, body)


def await_that(ready: Callable[[], bool]) -> None:
    """Looks again and again; whoever runs the tests decides how long is too long."""
    while not ready():
        time.sleep(0.05)


def atlasloop(settings: EmbeddedSettings, *arguments: str) -> str:
    """The command in this process, which loads torch once; its standard output."""
    done = CliRunner().invoke(app, list(arguments), env=settings.environment())
    assert done.exit_code == 0, f"{arguments}: {done.stderr} {done.exception!r}"
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("loop")
    settings = free_settings(
        root / "home", root / "models", ("triton", "attention", "review", "prefect", "flows")
    )
    plans = (("work", CASES, "none"), ("taught", 3, "truth"), ("held_out", 2, "truth"))
    for name, cases, labels in plans:
        size = ("--cases", str(cases), "--columns", "48", "--labels", labels)
        atlasloop(settings, "phantoms", str(root / name), *size, "--seed", str(cases))
        kind = ("--preset", "phantoms") if labels == "truth" else ()
        atlasloop(settings, "import", str(root / name), "--dataset", name, *kind)
    for name in MODELS:
        chosen = [part for one in (*SMALL, f"name={name}") for part in ("--set", one)]
        taught = ("--dataset", "taught", "--validation-share", "0")
        atlasloop(settings, "models", "train", "demo/unet", *chosen, *taught)
        atlasloop(
            settings, "models", "export", f"{name}@0", "--output", str(root / "models" / name)
        )
    try:
        up(settings)
        with Catalog.open(settings.catalog_url) as catalog:
            yield Site(Stack(settings), catalog, root / "work")
    finally:
        down(settings)


def test_the_loop_survives_and_promotes(site: Site) -> None:
    wish = {
        "dataset": "work",
        "share": REVISED / CASES,
        "steps": 3,
        "validation_dataset": "held_out",
        "iterations": 1,
        "in_flight": 1,
    }
    # Killed in the middle of scoring
    first = site.start(mode="run", **wish)
    site.kill_run(lambda: 0 < len(site.scored()) < CASES)
    before = site.scored()
    assert site.await_end(first)["state_type"] == CRASHED
    second = site.await_end(site.start(mode="run", **wish))
    assert second["state_type"] == COMPLETED, second["state"]
    assert second["state_name"] == "WaitingForReview"
    assert len(site.scored()) == CASES
    assert before.items() <= site.scored().items(), "a case was scored twice"

    # People work; when the queue is drained, Prefect's automation goes on
    token = review_token(site.settings, ACCOUNT)
    with ReviewApi.open(site.settings.review_url, token) as api:
        done = annotate(api, PhantomLabels.of(site.phantoms), AnnotatorPolicy(minutes=600))
    assert done.revised == REVISED, "a model of three steps finds no organ"
    # Killed when one model is trained and the other is not
    site.kill_run(lambda: "train:small_a" in site.steps() and "promote:small_b" not in site.steps())
    (automatic,) = site.runs("continue")
    assert site.await_end(automatic)["state_type"] == CRASHED
    last = site.await_end(site.start(mode="run"))
    assert last["state_type"] == COMPLETED, last["state"]
    assert last["state_name"] == "LoopFinished"

    assert site.running() == [], "the UI shows parts of killed runs as running"
    (iteration,) = Iterations(site.catalog).all()
    assert iteration.state is IterationState.DONE
    repository = repository_of(site.settings)
    for name in MODELS:
        assert repository.in_service(name) == 1
        assert [model.spec.version for model in site.catalog.models(name)] == [0, 1]
        assert len(promotions(site.catalog, name)) == 1
    require_learnt_from_revisions(site)


@pytest.mark.long
def test_at_its_deadline_the_loop_goes_on_without_the_annotators(site: Site) -> None:
    """Prefect starts the second half by itself, whatever is still in the queue."""
    asked_before = site.runs("continue")
    wish = {"dataset": "work", "share": REVISED / CASES, "steps": 3, "iterations": 1}
    first = site.start(mode="run", validation_dataset="held_out", deadline_hours=1 / 3600, **wish)
    assert site.await_end(first)["state_name"] == "WaitingForReview"
    await_that(lambda: site.runs("continue") != asked_before)
    (at_deadline,) = set(site.runs("continue")) - set(asked_before)
    ended = site.await_end(at_deadline)
    assert ended["state_name"] == "LoopFinished", ended["state"]
    newest = Iterations(site.catalog).all()[-1]
    assert newest.state is IterationState.DONE
    assert len(Iterations(site.catalog).all()) == 2
    for name in MODELS:
        assert repository_of(site.settings).in_service(name) == 2


def test_the_other_flows_start_from_their_own_forms(site: Site) -> None:
    """What `iterate` does step by step is there for itself too, and leaves its effect."""
    served = [spec for name in MODELS for spec in repository_of(site.settings).served(name)]
    known = {spec.ref: len(evaluations(site.catalog, spec.ref)) for spec in served}
    folder = site.settings.home / "landing/atlas"
    wish = {"folder": "atlas", "datasets": ["work"]}
    # A run takes seconds to begin: all are started, and looked at as they end.
    evaluate = site.start("evaluate", dataset="held_out")
    without_licence = site.start("release", **wish)
    revise = site.start("revise", dataset="work", share=1.0, again=True)

    refused = site.await_end(without_licence)
    assert refused["state_type"] == "FAILED"
    assert "licence is not known" in refused["state"]["message"]
    released = site.await_end(site.start("release", accept=["unknown"], **wish))
    assert released["state_type"] == COMPLETED, released["state"]["message"]
    assert len(list(folder.glob("*/combined_labels.nii.gz"))) == CASES

    evaluated = site.await_end(evaluate)
    assert evaluated["state_type"] == COMPLETED, evaluated["state"]["message"]
    for spec in served:
        newest, *before = evaluations(site.catalog, spec.ref)
        assert newest.cases
        assert len(before) == known[spec.ref]

    revised = site.await_end(revise)
    assert revised["state_type"] == COMPLETED, revised["state"]["message"]
    ensemble = site.catalog.latest_ensemble(Reading.PAPER, "work")
    _, tasks = RevisionViews(site.catalog).page(TaskFilter(dataset="work"), 0, 100)
    asked = {task.case_id for task in tasks if task.ensemble == ensemble}
    assert asked == {case.id for case in site.catalog.cases("work")}


def require_learnt_from_revisions(site: Site) -> None:
    """The new versions learnt from what the annotator handed in, and from pseudo labels."""
    (newest,) = (m for m in site.catalog.models(MODELS[0]) if m.spec.version == 1)
    sources = {label.source for label in training_labels(site.catalog, newest.spec.ref)}
    assert {LabelSource.REVISED, LabelSource.PSEUDO} <= sources
    authors = {
        label.annotator
        for case in site.catalog.cases("work")
        for label in site.catalog.labels(case.id, LabelSource.REVISED)
    }
    assert authors == {ACCOUNT}
