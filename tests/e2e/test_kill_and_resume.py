"""SIGKILL in the middle of a run: the next run completes, and nothing tells that it happened.

Each part of the stack is killed once while cases are being scored. Afterwards the files in the case
store and the rows of the catalog must equal those of a run that nobody disturbed, but for times.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from atlas_core.catalog import Catalog
from atlas_core.importing import import_folder
from atlas_core.records import LabelSource, Reading
from atlas_core.store import CaseStore
from prefect_api import ask_prefect
from small_cts import write_small_cts
from stack import Stack, open_stack
from store_content import files_of, without_times

pytestmark = pytest.mark.stack

CASES = 8
"""So many that a run lasts for seconds and can be met in its middle."""

PATIENCE_S = 300.0
"""How long a test waits for something that happens in seconds."""


class Bench:
    """A stack with cases, and the results of an undisturbed run over them."""

    def __init__(self, stack: Stack, catalog: Catalog, store: CaseStore) -> None:
        self.stack = stack
        self.catalog = catalog
        self.store = store
        completed = self.score()
        assert completed.returncode == 0, completed.stderr
        self.undisturbed = self.results()

    def start(self, *options: str) -> subprocess.Popen[str]:
        """`atlasloop score` in a session of its own, so that a signal meets nobody else."""
        return subprocess.Popen(
            [sys.executable, "-m", "atlas_flows.cli", "score", "--in-flight", "2", *options],
            env=self.stack.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def score(self, *options: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*options)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def forget(self) -> None:
        """No scores, no pseudo labels, no predictions: as after an import."""
        for case in self.catalog.cases():
            labels = self.catalog.labels(case.id)
            self.catalog.delete_case(case.id)
            self.catalog.add_case(
                case, [label for label in labels if label.source is not LabelSource.PSEUDO]
            )
        for ensemble_dir in self.store.root.glob("cases/*/predictions/*/*"):
            case_id, reading = ensemble_dir.parts[-4], ensemble_dir.parts[-2]
            self.store.delete_prediction(case_id, Reading(reading), ensemble_dir.name)

    def scored(self) -> int:
        return len(self.catalog.ranking(Reading.PAPER))

    def await_middle(self, process: subprocess.Popen[str]) -> None:
        """Until some cases are scored and others are not."""
        deadline = time.monotonic() + PATIENCE_S
        while not 0 < self.scored() < CASES:
            assert process.poll() is None, "the run ended before it could be disturbed"
            assert time.monotonic() < deadline, "no case was scored"
            time.sleep(0.02)

    def await_scored(self, cases: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while self.scored() < cases:
            assert time.monotonic() < deadline, f"{self.scored()} cases were scored"
            time.sleep(0.1)

    def results(self) -> dict[str, Any]:
        """Everything that a run leaves, without times."""
        files = {
            name: content
            for name, content in files_of(self.store.root).items()
            if "/predictions/" in name
        }
        rows = [
            {
                "ranked": ranked.model_dump(mode="json"),
                "labels": [
                    without_times(label.model_dump(mode="json"))
                    for label in sorted(
                        self.catalog.labels(ranked.case_id), key=lambda label: label.organ
                    )
                ],
            }
            for ranked in self.catalog.ranking(Reading.PAPER)
        ]
        return {"files": files, "rows": rows}

    def prefect_runs(self, state: str) -> list[str]:
        """Ids of the runs that the Prefect UI shows in that state."""
        of_state = {"flow_runs": {"state": {"type": {"any_": [state]}}}}
        runs = ask_prefect(self.stack.settings, "/flow_runs/filter", of_state)
        return [run["id"] for run in runs]

    def require_recovery(self) -> None:
        """A second run completes, and nothing tells what happened to the first."""
        second = self.score()
        assert second.returncode == 0, second.stderr
        assert self.scored() == CASES
        assert self.results() == self.undisturbed
        incoming = self.store.root / ".incoming"
        self.store.sweep(older_than_hours=0)
        assert not list(incoming.iterdir())


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory, stack_models: Path) -> Iterator[Bench]:
    root = tmp_path_factory.mktemp("kill")
    write_small_cts(root / "cts", CASES, 21)
    with open_stack(root / "home", stack_models, ("triton", "attention", "prefect")) as stack:
        store = CaseStore(stack.settings.store)
        with Catalog.open(stack.settings.catalog_url) as catalog:
            import_folder(root / "cts", "kill", catalog=catalog, store=store)
            yield Bench(stack, catalog, store)


@pytest.fixture
def bench(loaded: Bench) -> Bench:
    """Healthy parts, and cases that nobody has scored."""
    loaded.stack.restart()
    loaded.forget()
    return loaded


@pytest.mark.parametrize("part", ["triton", pytest.param("attention", marks=pytest.mark.long)])
def test_a_killed_service(bench: Bench, part: Any) -> None:
    run = bench.start("--patience", "2")
    bench.await_middle(run)
    bench.stack.kill(part)
    out, err = run.communicate(timeout=300)
    assert run.returncode == 1, err
    assert "away" in out
    assert 0 < bench.scored() < CASES
    bench.stack.restart()
    bench.require_recovery()


@pytest.mark.parametrize("part", [pytest.param("triton", marks=pytest.mark.long), "attention"])
def test_a_run_outlives_a_service_that_comes_back(bench: Bench, part: Any) -> None:
    run = bench.start("--patience", "120")
    bench.await_middle(run)
    bench.stack.kill(part)
    bench.stack.restart()
    _, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    assert bench.results() == bench.undisturbed


def test_a_killed_flow(bench: Bench) -> None:
    run = bench.start()
    bench.await_middle(run)
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()
    assert bench.scored() < CASES
    (seen,) = bench.prefect_runs("RUNNING")
    bench.require_recovery()
    # Nobody looks at a run that seems to go on for ever.
    assert bench.prefect_runs("RUNNING") == []
    assert seen in bench.prefect_runs("CRASHED")


def test_an_interrupted_flow_ends_at_once(bench: Bench) -> None:
    run = bench.start()
    bench.await_middle(run)
    os.killpg(run.pid, signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    assert "Traceback" not in err
    bench.require_recovery()


def test_a_killed_prefect_server(bench: Bench) -> None:
    """Predictions do not depend on who watches; the next run tells that the server is away."""
    run = bench.start()
    bench.await_middle(run)
    bench.stack.kill("prefect")
    bench.await_scored(CASES)
    # Prefect's client goes on trying to tell its server of every task; that is not awaited here.
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()
    away = bench.score()
    assert away.returncode == 2
    assert "atlasloop up" in away.stderr
    bench.stack.restart()
    bench.require_recovery()
