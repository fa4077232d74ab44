"""The drained queue told to a real Prefect server, by the process that a cluster runs for it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import sqlalchemy as sa
from atlas_core.catalog import Catalog, tables
from atlas_core.review import QUEUE_DRAINED, Annotator, RevisionQueue
from ports import free_port
from prefect_api import as_operator, ask_prefect
from prometheus_client.parser import text_string_to_metric_families
from review_server import make_place
from stack import Stack

PATIENCE_S = 120
ANN = Annotator("ann")


@pytest.fixture
def drained(tmp_path: Path) -> str:
    """Address of a catalog in which the last case was just judged."""
    place = make_place(tmp_path / "place", cases=1, columns=32)
    with Catalog.open(place.catalog_url) as catalog:
        queue = RevisionQueue(catalog)
        task = queue.next(ANN)
        assert task is not None
        queue.confirm(task.id, ANN, 1)
    return place.catalog_url


@contextlib.contextmanager
def delivery(
    stack: Stack, catalog_url: str, auth: str, alive: Path, metrics: str = ""
) -> Iterator[None]:
    variables = stack.environment() | {
        # A deployment's settings: they name the server, and bring its password along.
        "ATLASLOOP_HOME": str(alive.parent / "home"),
        "ATLASLOOP_PREFECT_PORT": "18020",
        "ATLASLOOP_CATALOG_URL": catalog_url,
        "ATLASLOOP_PREFECT_API_URL": stack.prefect_api_url,
        "PREFECT_API_AUTH_STRING": auth,
        "ATLASLOOP_METRICS_LISTEN": metrics,
    }
    command = [sys.executable, "-m", "atlas_flows.event_delivery", str(alive)]
    process = subprocess.Popen(command, env=variables)
    try:
        yield
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait()


def outbox(catalog_url: str) -> list[Any]:
    with Catalog.open(catalog_url) as catalog, catalog.transaction(write=False) as connection:
        return list(connection.execute(sa.select(tables.outgoing_events)))


def arrived(stack: Stack) -> list[dict[str, Any]]:
    wanted = {"filter": {"event": {"name": [QUEUE_DRAINED]}}}
    found: list[dict[str, Any]] = ask_prefect(stack.settings, "/events/filter", wanted)["events"]
    return found


def await_that(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_drained_queue_is_reported_until_the_report_arrives(
    prefect_stack: Stack, drained: str, tmp_path: Path
) -> None:
    alive = tmp_path / "alive"
    with delivery(prefect_stack, drained, "atlasloop:wrong", alive):
        await_that(lambda: [row.last_error for row in outbox(drained)] == ["HTTP 401"])
        await_that(alive.exists)
    assert arrived(prefect_stack) == []
    auth = ":".join(as_operator(prefect_stack.settings))
    with delivery(prefect_stack, drained, auth, alive):
        await_that(lambda: [row.delivered_at for row in outbox(drained)] != [None])
        await_that(lambda: arrived(prefect_stack))
    (event,) = arrived(prefect_stack)
    assert event["payload"] == {"tasks": {"confirmed": 1}}
    assert event["resource"] == {"prefect.resource.id": "atlasloop.queue"}


def scrape(address: str) -> dict[str, float]:
    """Every sample, by its name and its label's value; none as long as nobody answers."""
    try:
        text = httpx.get(f"http://{address}/metrics", timeout=None).raise_for_status().text
    except httpx.ConnectError:
        return {}
    return {
        " ".join(
            (sample.name.removeprefix("atlasloop_loop_"), *sample.labels.values())
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_loop_is_measured(prefect_stack: Stack, tmp_path: Path) -> None:
    """What catalog and Prefect know is what Prometheus reads; the one without the other, too."""
    place = make_place(tmp_path / "place", cases=3, columns=32)
    with Catalog.open(place.catalog_url) as catalog:
        task = RevisionQueue(catalog, lease=timedelta(minutes=1)).next(ANN)
    assert task is not None
    name = f"failing-{uuid4().hex[:8]}"
    flow = ask_prefect(prefect_stack.settings, "/flows/", {"name": name})
    failed = {"type": "FAILED", "name": "Failed"}
    body = {"flow_id": flow["id"], "name": "one", "state": failed}
    run = ask_prefect(prefect_stack.settings, "/flow_runs/", body)
    set_state = f"/flow_runs/{run['id']}/set_state"
    for state in ({"type": "RUNNING"}, failed):
        ask_prefect(prefect_stack.settings, set_state, {"state": state, "force": True})
    address = f"127.0.0.1:{free_port()}"
    auth = ":".join(as_operator(prefect_stack.settings))
    with delivery(prefect_stack, place.catalog_url, auth, tmp_path / "alive", address):
        await_that(lambda: scrape(address))
        samples = scrape(address)
    assert samples["up catalog"] == samples["up prefect"] == 1
    assert samples["cases"] == samples["scored_cases paper"] == 3
    assert samples["leases"] == samples["leases_ending"] == 1
    assert samples[f"failed_runs {name}"] == 1
    assert samples["runs late"] >= 0
    with delivery(prefect_stack, place.catalog_url, "atlasloop:wrong", tmp_path / "a", address):
        await_that(lambda: scrape(address))
        samples = scrape(address)
    assert (samples["up catalog"], samples["up prefect"]) == (1, 0)
    assert samples["cases"] == 3
    assert "runs late" not in samples
