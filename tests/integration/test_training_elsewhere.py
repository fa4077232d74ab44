"""The loop has another run train, in the pool that has GPUs: a real Prefect server, and a worker
that is played by the test, so that it can end in every way.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from atlas_core.errors import ConfigurationError, Unavailable
from atlas_flows.models import FinetuningRequest, Trained, remote_training
from atlas_flows.models.outcomes import REFUSED
from atlas_flows.models.remote_training import train_elsewhere
from atlas_flows.settings import Places
from atlas_flows.work_pools import deployed_flows, register
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Cancelled, Completed, Crashed, Failed, Running
from prefect_server import prefect_server
from rendered_chart import job_templates, render

DEPLOYMENT = "finetune/finetune"

TUNING = FinetuningRequest(model="unet", parent=0, version=1, steps=7, labels="assembled")


@pytest.fixture(scope="module", autouse=True)
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with prefect_server(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATLASLOOP_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("ATLASLOOP_TRAINING_DEPLOYMENT", DEPLOYMENT)
        patch.setattr(remote_training, "POLL_S", 0.1)
        register(job_templates(render("trial")), deployed_flows(Places.read()))
        yield


@flow(name="waits", persist_result=False)
def waits(tuning: dict[str, Any]) -> Trained:
    """Stands for the loop: it has a run that the other one is linked to."""
    return train_elsewhere(FinetuningRequest(**tuning), DEPLOYMENT)


def runs_of(version: int) -> list[FlowRun]:
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(limit=200)
    return [run for run in found if f"trains:unet@{version}" in run.tags]


def worker(version: int, *states: State[Any]) -> Callable[[], None]:
    """Waits for the run that makes `version`, and takes it through `states`."""

    def work() -> None:
        given_up = threading.Event()
        while not (found := [r for r in runs_of(version) if r.state and not r.state.is_final()]):
            given_up.wait(0.1)
        with get_client(sync_client=True) as client:
            for state in states:
                client.set_flow_run_state(found[0].id, state, force=True)

    thread = threading.Thread(target=work)
    thread.start()
    return thread.join


def test_a_run_trains_and_the_loop_waits_for_it() -> None:
    ended = worker(1, Running(), Completed())
    assert waits(vars(TUNING)) == Trained(version=1)
    ended()
    (run,) = runs_of(1)
    assert run.work_pool_name == "gpu"
    assert run.parent_task_run_id is not None  # the page shows it below the loop's run
    assert run.parameters == {
        "model": "unet", "parent": 0, "version": 1, "dataset": None, "steps": 7,
        "learning_rate": None, "validation_share": 0.1, "labels": "assembled", "promote": False,
    }  # fmt: skip


def test_a_training_that_diverged_is_told_from_one_that_ended_otherwise() -> None:
    ended = worker(2, Failed(name=REFUSED, message="loss is no number"))
    assert waits(vars(replace(TUNING, version=2))).refused == "loss is no number"
    ended()
    for version, state in ((3, Crashed()), (4, Cancelled()), (5, Failed(message="disk full"))):
        ended = worker(version, state)
        with pytest.raises(Unavailable, match="goes on from its checkpoint"):
            waits(vars(replace(TUNING, version=version)))
        ended()
        ended = worker(version, Completed())
        assert waits(vars(replace(TUNING, version=version))) == Trained(version=version)
        ended()
        assert len(runs_of(version)) == 2


def test_who_waits_may_be_killed_and_the_run_is_found_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(remote_training, "_await", killed)
        with pytest.raises(Killed):
            waits(vars(replace(TUNING, version=6)))
    (under_way,) = runs_of(6)
    ended = worker(6, Running(), Completed())
    assert waits(vars(replace(TUNING, version=6))) == Trained(version=6)
    ended()
    assert [run.id for run in runs_of(6)] == [under_way.id]


def test_a_deployment_that_is_not_there_is_named() -> None:
    @flow(persist_result=False)
    def elsewhere() -> Trained:
        return train_elsewhere(replace(TUNING, version=7), "finetune/nowhere")

    with pytest.raises(ConfigurationError, match="finetune/nowhere"):
        elsewhere()
