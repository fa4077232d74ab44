"""Has a run of its own train, where a GPU is, and waits for it: the loop's run holds none.

The run carries the version that it makes as a tag. So whoever waits may be killed: the next one
finds the run that is under way, and waits for that. A version is never trained twice, as
`finetune` takes one that exists as it is; a training that was killed goes on from its checkpoint.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, cast
from uuid import UUID

import httpx
from atlas_core.errors import ConfigurationError, Unavailable
from prefect import get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound

from atlas_flows.models.outcomes import REFUSED, Trained

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

    from atlas_flows.models.version_finetuning import FinetuningRequest

POLL_S: Final = 5.0

PATIENCE_S: Final = 600.0
"""How long Prefect may be away, as in an upgrade, before the one who waits gives up."""

UNDER_WAY: Final = [
    StateType.SCHEDULED,
    StateType.PENDING,
    StateType.RUNNING,
    StateType.PAUSED,
    StateType.CANCELLING,
]


def train_elsewhere(tuning: FinetuningRequest, deployment: str) -> Trained:
    """One training as a run of `deployment`, of the flow `finetune`.

    Returns:
        With `refused` if the training diverged.

    Raises:
        ConfigurationError: there is no such deployment.
        Unavailable: its run was cancelled, crashed or failed, or Prefect does not answer. Call it
            again: it goes on where that one ended.
    """
    log = get_run_logger()
    tag = f"trains:{tuning.model}@{tuning.version}"
    with get_client(sync_client=True) as client:
        run = _under_way(client, tag)
        if run is None:
            run = _start(tuning, deployment, tag)
            log.info("%s@%d is trained by run %s", tuning.model, tuning.version, run.name)
        else:
            log.info("run %s is training %s@%d", run.name, tuning.model, tuning.version)
        ended = _await(client, run.id)
    state = ended.state
    assert state is not None  # it is final
    if state.is_completed():
        return Trained(version=tuning.version)
    if state.name == REFUSED:
        return Trained(version=tuning.version, refused=state.message or REFUSED)
    raise Unavailable(
        f"the run {ended.name} that trains {tuning.model}@{tuning.version} ended: {state.name}",
        got=state.message,
        remedy="see its log, then start the loop again: the training goes on from its checkpoint",
    )


def _under_way(client: SyncPrefectClient, tag: str) -> FlowRun | None:
    wanted = {"tags": {"all_": [tag]}, "state": {"type": {"any_": UNDER_WAY}}}
    found = client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(wanted))
    return found[0] if found else None


def _start(tuning: FinetuningRequest, deployment: str, tag: str) -> FlowRun:
    parameters = {
        "model": tuning.model,
        "parent": tuning.parent,
        "version": tuning.version,
        "dataset": tuning.dataset,
        "steps": tuning.steps,
        "learning_rate": tuning.learning_rate,
        "pseudo_weight": tuning.pseudo_weight,
        "validation_share": tuning.validation_share,
        "labels": tuning.labels,
        "promote": False,
    }
    try:
        started = run_deployment(deployment, parameters=parameters, tags=[tag], timeout=0)
    except ObjectNotFound:
        raise ConfigurationError(
            f"Prefect has no deployment {deployment}",
            remedy="register the deployments (the chart's job `register`), or leave "
            "ATLASLOOP_TRAINING_DEPLOYMENT empty",
        ) from None
    return cast("FlowRun", started)  # a coroutine only where the caller is one


def _await(client: SyncPrefectClient, run: UUID) -> FlowRun:
    """Its last state; hours may pass, in which the server may be started again."""
    answered = time.monotonic()
    while True:
        try:
            found = client.read_flow_run(run)
            answered = time.monotonic()
        except httpx.HTTPError as error:
            if time.monotonic() - answered > PATIENCE_S:
                raise Unavailable(
                    "Prefect does not answer", got=type(error).__name__, remedy="start it again"
                ) from None
        else:
            if found.state is not None and found.state.is_final():
                return found
        time.sleep(POLL_S)
