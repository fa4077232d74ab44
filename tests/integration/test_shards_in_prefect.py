"""What Prefect shows of a run that is stopped in its middle."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from atlas_flows.runs import CaseOutcome, Outcome, ProgressCounter, not_tried
from atlas_flows.runs.progress_artifact import ProgressArtifact
from atlas_flows.runs.shards import run_shards, shard_state
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, TaskRun
from prefect_server import prefect_server

CASES = ("a", "b", "c", "d")


@dataclass(frozen=True)
class Run:
    progress: ProgressCounter
    stop: threading.Event = field(default_factory=threading.Event)


@pytest.fixture(scope="module", autouse=True)
def prefect() -> Iterator[None]:
    with prefect_server():
        yield


@task
def work(cases: tuple[str, ...], run: Run) -> list[CaseOutcome] | State[list[CaseOutcome]]:
    """The run is stopped at case b, as by a service that went away."""
    outcomes = []
    for case in cases:
        if case == "b":
            run.stop.set()
        outcome = Outcome.NOT_TRIED if run.stop.is_set() else Outcome.SCORED
        outcomes.append(CaseOutcome(case_id=case, outcome=outcome))
        run.progress.add(outcomes[-1])
    return shard_state(outcomes, not_tried(outcomes))


@task
def fail(cases: tuple[str, ...], run: Run) -> list[CaseOutcome]:
    raise ValueError(cases[0])


def test_cases_that_were_not_worked_on_count_as_cancelled() -> None:
    @flow
    def stopped() -> list[CaseOutcome]:
        with ProgressArtifact(len(CASES), "stopped-progress", "Cases") as shown:
            run = Run(ProgressCounter(len(CASES), shown))
            return run_shards(work, {"cases": [(case,) for case in CASES]}, run, 1)

    outcomes = stopped()
    assert [one.outcome for one in outcomes] == [Outcome.SCORED, *[Outcome.NOT_TRIED] * 3]
    with get_client(sync_client=True) as client:
        # States reach the server as events, a little later.
        while len(runs := [one for one in client.read_task_runs() if _ended(one)]) < len(CASES):
            time.sleep(0.1)
        (progress,) = client.read_artifacts()
    states = sorted(run.state_type.value for run in runs if run.state_type)
    assert states == ["CANCELLED", "CANCELLED", "CANCELLED", "COMPLETED"]
    assert progress.data == 25.0


def _ended(run: TaskRun) -> bool:
    return run.state is not None and run.state.is_final()


def test_what_a_shard_raises_ends_the_run() -> None:
    @flow
    def failing() -> list[CaseOutcome]:
        run = Run(ProgressCounter(1, lambda *_: None))
        return run_shards(fail, {"cases": [("a",), ("b",)]}, run, 1)

    with pytest.raises(ValueError, match="a"):
        failing()
