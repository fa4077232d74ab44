"""What becomes of runs whose process was killed; against a real Prefect server."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from atlas_flows.runs.crashed_runs import requeue_claimed_runs
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.states import Pending, Running, Scheduled
from prefect_server import prefect_server


@pytest.fixture(scope="module", autouse=True)
def prefect() -> Iterator[None]:
    with prefect_server():
        yield


@flow
def served() -> None:
    """Nothing."""


def deployed(client: SyncPrefectClient, name: str) -> str:
    """Id of a deployment of `served`, of which one run may be under way."""
    made = client.create_deployment(client.create_flow(served), name=name, concurrency_limit=1)
    return str(made)


def test_a_claimed_run_waits_again_and_gives_its_place_back() -> None:
    with get_client(sync_client=True) as client:
        ours, others = deployed(client, "ours"), deployed(client, "others")
        claimed, foreign = (
            client.create_flow_run_from_deployment(one, state=Scheduled()) for one in (ours, others)
        )
        for run in (claimed, foreign):
            client.set_flow_run_state(run.id, Pending())
        assert requeue_claimed_runs(["ours"]) == 1
        found = client.read_flow_run(claimed.id).state
        assert found is not None and found.type is StateType.SCHEDULED
        due = found.state_details.scheduled_time
        assert due is not None and due <= datetime.now(UTC)
        assert client.read_flow_run(foreign.id).state_type is StateType.PENDING
        # Its place is free: another one of the deployment begins.
        another = client.create_flow_run_from_deployment(ours, state=Scheduled())
        client.set_flow_run_state(another.id, Pending())
        client.set_flow_run_state(another.id, Running())
        assert client.read_flow_run(another.id).state_type is StateType.RUNNING
        assert requeue_claimed_runs(["ours"]) == 0
