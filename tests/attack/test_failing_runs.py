"""Runs that fail, one after the other, do not keep a good one waiting for minutes.

One run of a flow goes on at a time; the others ask again for its place. How soon they may is
what Prefect's server answers, which is asked here as a worker asks it.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from prefect_api import ask_prefect
from stack import Stack

pytestmark = pytest.mark.stack

PREFECTS_OWN_S = 30.0
"""Between two requests for the place, where nobody says otherwise: five runs that fail in a second
each keep the sixth waiting for two and a half minutes."""

SETTING = "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS"
DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def propose(stack: Stack, run: str, state: str) -> dict[str, Any]:
    """What the server answers to a worker that wants to bring `run` into `state`."""
    body = {"state": {"type": state, "name": state.title()}}
    return dict(ask_prefect(stack.settings, f"/flow_runs/{run}/set_state", body))


def test_a_good_run_soon_has_its_turn_after_failing_ones(prefect_stack: Stack) -> None:
    name = f"turns-{uuid4().hex[:8]}"
    flow = ask_prefect(prefect_stack.settings, "/flows/", {"name": name})
    deployment = ask_prefect(
        prefect_stack.settings,
        "/deployments/",
        {"name": name, "flow_id": flow["id"], "concurrency_limit": 1},
    )
    path = f"/deployments/{deployment['id']}/create_flow_run"
    runs = [ask_prefect(prefect_stack.settings, path, {})["id"] for _ in range(4)]
    failing, good = runs[0], runs[-1]
    assert propose(prefect_stack, failing, "PENDING")["status"] == "ACCEPT"
    assert propose(prefect_stack, failing, "RUNNING")["status"] == "ACCEPT"
    for waiting in runs[1:]:
        state = propose(prefect_stack, waiting, "PENDING")["state"]
        assert state["name"] == "AwaitingConcurrencySlot"
        told = datetime.fromisoformat(state["timestamp"])
        again = datetime.fromisoformat(state["state_details"]["scheduled_time"])
        assert (again - told).total_seconds() <= PREFECTS_OWN_S / 5
    assert propose(prefect_stack, failing, "FAILED")["status"] == "ACCEPT"
    # Its place is free at once, also for who came last.
    assert propose(prefect_stack, good, "PENDING")["status"] == "ACCEPT"


def test_the_same_wait_holds_wherever_prefects_server_runs() -> None:
    compose = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
    said = compose["services"]["prefect"]["environment"][SETTING]
    assert 0 < float(said) <= PREFECTS_OWN_S / 5
    chart = (DEPLOY / "helm" / "atlasloop" / "templates" / "prefect.yaml").read_text()
    assert f'{{name: {SETTING}, value: "{said}"}}' in chart
