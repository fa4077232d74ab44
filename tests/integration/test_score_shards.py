"""Scoring fanned out over runs of their own, on a real Prefect server: none twice, none lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from atlas_core.catalog import Catalog
from atlas_core.records import Reading
from atlas_core.store import CaseStore
from prefect_api import ask_prefect
from simulated_attention import ENSEMBLE, SimulatedAttention, add_cases, serve_simulated
from stack import Stack

pytestmark = pytest.mark.stack

CASES = 24
SHARDS = 2
PATIENCE_S = 150.0


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
    return found


@contextmanager
def process(arguments: list[str], variables: dict[str, str], log: Path) -> Iterator[Any]:
    """A process of this environment that ends, with its children, with the block."""
    with log.open("ab") as file:
        running = subprocess.Popen(
            [sys.executable, "-m", *arguments], env=variables, stdout=file, stderr=file
        )
    try:
        yield running
    finally:
        family = [psutil.Process(running.pid), *children(running.pid)] if alive(running) else []
        for one in family:
            one.kill()
        running.wait()


def alive(running: subprocess.Popen[bytes]) -> bool:
    return running.poll() is None


def children(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def runs_of(stack: Stack, flow: str) -> list[dict[str, Any]]:
    return list(
        ask_prefect(stack.settings, "/flow_runs/filter", {"flows": {"name": {"any_": [flow]}}})
    )


@pytest.mark.long
def test_a_shard_that_dies_is_taken_over_and_no_case_is_scored_twice(
    prefect_stack: Stack, tmp_path: Path
) -> None:
    stack = prefect_stack
    store = CaseStore(tmp_path / "store")
    url = f"sqlite:///{tmp_path}/catalog.sqlite"
    with Catalog.open(url) as catalog:
        ids = add_cases(catalog, "Sharded", CASES)
    simulated = SimulatedAttention(store, held={ids[0]})
    with serve_simulated(simulated) as address:
        store.root.mkdir(exist_ok=True)
        variables = stack.environment() | {
            "ATLASLOOP_CATALOG_URL": url,
            "ATLASLOOP_STORE": str(store.root),
            "ATLASLOOP_ATTENTION_ADDRESS": address,
            "ATLASLOOP_SCORE_PARAMETERS": json.dumps({"shards": SHARDS}),
        }
        log = tmp_path / "log"
        serving = process(["atlas_flows.serve"], variables, log)
        score = ["atlas_flows.cli", "score", "--model", "simulated", "--shards", str(SHARDS)]
        score += ["--in-flight", "1"]
        with serving, ExitStack() as ending:
            until(lambda: _are_served(stack), "shards are served")
            run = ending.enter_context(process(score, variables, log))
            until(simulated.asked.is_set, "a shard asks for the first case")
            (holder,) = until(lambda: _working_on(runs_of(stack, "score-shard")), "")
            os.kill(holder, signal.SIGKILL)  # with the case ids[0] under way
            simulated.release.set()
            run.wait(PATIENCE_S)
            assert run.returncode == 0, log.read_text()[-5000:]
    with Catalog.open(url) as catalog:
        assert set(catalog.scored_cases(Reading.PAPER, ENSEMBLE)) == set(ids)
    assert set(simulated.predicted.values()) == {1} and len(simulated.predicted) == CASES
    states = sorted(one["state_type"] for one in runs_of(stack, "score-shard"))
    assert states.count("CRASHED") == 1 and set(states) == {"CRASHED", "COMPLETED"}


def _are_served(stack: Stack) -> bool:
    deployments = ask_prefect(stack.settings, "/deployments/filter", {})
    return any(one["name"] == "score-shard" and one["status"] == "READY" for one in deployments)


def _working_on(runs: list[dict[str, Any]]) -> list[int]:
    """Process of the shard that has the first case, by the tag of its run."""
    return [
        int(tag.split(":")[2])
        for run in runs
        if run["state_type"] == "RUNNING" and run["name"].startswith("Sharded_000000 ")
        for tag in run["tags"]
        if tag.startswith("process:")
    ]
