"""A run of the loop at its deadline, scheduled with Prefect when the waiting begins."""

from __future__ import annotations

from datetime import datetime

from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.states import Scheduled

from atlas_flows.loop.state_machine import Mode

DEPLOYMENT = "iterate/iterate"


def wake_up_at(deadline: datetime, iteration: int) -> None:
    """Schedule a run of the deployed flow at `deadline`; calling it again adds no other run."""
    with get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(DEPLOYMENT)
        except ObjectNotFound:
            get_run_logger().warning(
                "the flow iterate is not served here: start it by hand at the deadline"
            )
            return
        client.create_flow_run_from_deployment(
            deployment.id,
            parameters={"mode": Mode.CONTINUE.value},
            state=Scheduled(scheduled_time=deadline),
            idempotency_key=f"deadline-{iteration}-{deadline.isoformat()}",
        )
