"""Runs whose process was killed, which Prefect would show as running for ever."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from atlas_embedded.processes import ProcessRecord
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, FlowFilter, FlowRunFilter
from prefect.client.schemas.objects import State, StateType
from prefect.states import Crashed, Scheduled

_PREFIX = "process"


def process_tag() -> str:
    """Names this very process on this machine since it was started, for the tags of its runs."""
    record = ProcessRecord.of(os.getpid())
    if record is None:
        raise RuntimeError("a process that runs has a record")
    # Containers of one machine share its boot, and each counts processes of its own.
    where = f"{record.boot_id}.{Path('/proc/self/ns/pid').stat().st_ino}"
    return f"{_PREFIX}:{where}:{record.pid}:{record.started_ticks}"


def mark_interrupted_runs(flow_name: str) -> int:
    """Mark the runs of `flow_name` whose process on this machine is gone as crashed.

    Returns:
        How many there were.
    """
    running = {"state": {"type": {"any_": [StateType.RUNNING]}}}
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_filter=FlowFilter.model_validate({"name": {"any_": [flow_name]}}),
            flow_run_filter=FlowRunFilter.model_validate(running),
        )
        gone = [run for run in runs if _process_is_gone(run.tags)]
        for run in gone:
            client.set_flow_run_state(run.id, _crashed(), force=True)
    return len(gone)


def requeue_claimed_runs(deployments: Iterable[str]) -> int:
    """Put the runs of these deployments that were claimed and never began back among those that
    wait. For the one process that serves them, when it starts: who claimed them was killed.

    Without it they stay pending for ever, and the first minutes in the place of the next run.

    Returns:
        How many there were.
    """
    pending = {"state": {"type": {"any_": [StateType.PENDING]}}}
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            deployment_filter=DeploymentFilter.model_validate({"name": {"any_": [*deployments]}}),
            flow_run_filter=FlowRunFilter.model_validate(pending),
        )
        for run in runs:
            client.set_flow_run_state(run.id, Scheduled(), force=True)
    return len(runs)


def _crashed() -> State[None]:
    return Crashed(message="its process was killed; the next run goes on where it ended")


def _process_is_gone(tags: Iterable[str]) -> bool:
    """Whether the tags name a process of this machine, since its last start, that has ended."""
    ours = process_tag().split(":")[1]
    for tag in tags:
        prefix, *rest = tag.split(":")
        if prefix == _PREFIX and len(rest) == 3 and rest[0] == ours:
            record = ProcessRecord.of(int(rest[1]))
            return record is None or str(record.started_ticks) != rest[2]
    return False
