"""Flow `score` as people start it, against real Triton, attention service and Prefect server."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from atlas_core.catalog import Catalog
from atlas_core.imaging import read_volume
from atlas_core.importing import import_folder
from atlas_core.records import LabelSource, Reading
from atlas_core.store import CaseStore
from prefect_api import ask_prefect
from small_cts import write_small_cts
from stack import Stack

pytestmark = pytest.mark.stack

CASES = 3
PATIENCE_S = 300.0
"""How long a test waits for something that happens in seconds."""


@pytest.fixture(scope="module")
def cts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flow-cts")
    write_small_cts(folder, CASES, 11)
    return folder


@pytest.fixture
def cases(prefect_stack: Stack, cts: Path) -> Iterator[tuple[Stack, Catalog, CaseStore]]:
    """The stack with `CASES` cases that nobody has scored; they are gone after the test."""
    store = CaseStore(prefect_stack.settings.store)
    with Catalog.open(prefect_stack.settings.catalog_url) as catalog:
        import_folder(cts, "flow", catalog=catalog, store=store)
        yield prefect_stack, catalog, store
        for case in catalog.cases():
            catalog.delete_case(case.id)
            store.delete_case(case.id)


def atlasloop(stack: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, working with `stack`."""
    return subprocess.run(
        [sys.executable, "-m", "atlas_flows.cli", *arguments],
        env=stack.environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def prefect(stack: Stack, path: str, body: object = None) -> Any:
    return ask_prefect(stack.settings, path, body)


def newest_run(stack: Stack) -> dict[str, Any]:
    runs = prefect(stack, "/flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})
    return dict(runs[0])


def artifacts(stack: Stack, run_id: str) -> dict[str, dict[str, Any]]:
    found = prefect(stack, "/artifacts/filter", {"flow_runs": {"id": {"any_": [run_id]}}})
    return {artifact["key"]: artifact for artifact in found}


def test_a_run_records_everything(cases: tuple[Stack, Catalog, CaseStore]) -> None:
    stack, catalog, store = cases
    result = atlasloop(stack, "score", "--in-flight", "2")
    assert result.returncode == 0, result.stderr
    assert f"{CASES} scored" in result.stdout

    ranking = catalog.ranking(Reading.PAPER)
    assert len(ranking) == CASES
    ensemble = catalog.latest_ensemble(Reading.PAPER)
    assert ensemble is not None
    for ranked in ranking:
        case = catalog.case(ranked.case_id)
        for size in ranked.organs:
            path = store.attention_path(case.id, Reading.PAPER, ensemble, size.organ)
            assert path.is_file() == (size.attention_voxels > 0)
            if not path.is_file():
                continue
            attention = read_volume(path)
            case.geometry.start_of(attention.geometry, this="CT", that="attention")
            # Anybody can verify the catalog from the files; they are float32, the sum is not.
            total = float(attention.voxels.sum(dtype=np.float64))
            assert size.attention_voxels == pytest.approx(total, rel=1e-5, abs=1e-6)
            assert size.attention_ml == pytest.approx(total * case.geometry.voxel_ml, rel=1e-5)
        labels = catalog.labels(case.id, LabelSource.PSEUDO)
        pseudo = read_volume(store.pseudo_label_path(case.id, Reading.PAPER, ensemble))
        assert {label.organ for label in labels} == {size.organ for size in ranked.organs}
        for label in labels:
            assert label.voxels == np.count_nonzero(pseudo.voxels == label.value)
            assert store.path(label.path).is_file()


def test_the_ui_shows_run_progress_and_ranking(cases: tuple[Stack, Catalog, CaseStore]) -> None:
    stack, catalog, _ = cases
    assert atlasloop(stack, "score").returncode == 0
    run = newest_run(stack)
    assert run["state_type"] == "COMPLETED"
    shown = artifacts(stack, run["id"])
    assert shown["score-progress"]["data"] == 100.0
    rows = json.loads(shown["score-ranking"]["data"])
    assert [row["case"] for row in rows] == [c.case_id for c in catalog.ranking(Reading.PAPER)]
    assert f"**{CASES}** cases scored" in shown["score-summary"]["data"]
    # A task with tags waits for the server's leave to begin, also while the server is away.
    of_run = {"flow_runs": {"id": {"any_": [run["id"]]}}}
    deadline = time.monotonic() + PATIENCE_S
    # They reach the server as events, a little later.
    while not (tasks := prefect(stack, "/task_runs/filter", of_run)):
        assert time.monotonic() < deadline, "Prefect knows of no task"
        time.sleep(0.2)
    assert run["tags"]
    assert not any(task["tags"] for task in tasks)


def test_a_second_run_skips_and_a_new_reading_does_not(
    cases: tuple[Stack, Catalog, CaseStore],
) -> None:
    stack, catalog, _ = cases
    atlasloop(stack, "score")
    again = atlasloop(stack, "score")
    assert again.returncode == 0
    assert f"0 scored, 0 found in the store, {CASES} scored before" in again.stdout
    released = atlasloop(stack, "score", "--reading", "released")
    assert f"{CASES} scored" in released.stdout, released.stderr
    assert len(catalog.ranking(Reading.RELEASED)) == CASES


def test_a_bad_file_stops_only_its_case(cases: tuple[Stack, Catalog, CaseStore]) -> None:
    stack, catalog, store = cases
    victim = catalog.cases()[1].id
    path = store.ct_path(victim)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    result = atlasloop(stack, "score")
    assert result.returncode == 1
    assert victim in result.stdout
    assert {case.case_id for case in catalog.ranking(Reading.PAPER)} == {
        case.id for case in catalog.cases()
    } - {victim}
    run = newest_run(stack)
    assert run["state_type"] == "FAILED"
    assert f"| {victim} | failed |" in artifacts(stack, run["id"])["score-summary"]["data"]


def test_a_run_started_from_the_form(
    cases: tuple[Stack, Catalog, CaseStore], tmp_path: Path
) -> None:
    stack, catalog, _ = cases
    log = (tmp_path / "serve.log").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "atlas_flows.serve"],
        env=stack.environment(),
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        deployment = _await(lambda: _deployment(stack))
        form = deployment["parameter_openapi_schema"]["properties"]
        assert all(field["description"] for field in form.values())
        for bad in ({"in_flight": 0}, {"no_such": 1}, {"dataset": "x" * 64}, {"models": ["a b"]}):
            with pytest.raises(httpx.HTTPStatusError) as refused:
                _start(stack, deployment, bad)
            assert refused.value.response.status_code in (409, 422)
        run = _start(stack, deployment, {"reading": "paper", "limit": 2})
        ended = _await(lambda: _ended(stack, run["id"]))
        assert ended["state_type"] == "COMPLETED", Path(log.name).read_text()
        assert len(catalog.ranking(Reading.PAPER)) == 2
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=60)
        log.close()


def test_nothing_of_the_machine_is_in_the_messages(
    cases: tuple[Stack, Catalog, CaseStore],
) -> None:
    stack, catalog, store = cases
    store.ct_path(catalog.cases()[0].id).unlink()
    result = atlasloop(stack, "score")
    assert result.returncode == 1
    assert not re.search(re.escape(str(stack.home)), result.stdout + result.stderr)


def _start(stack: Stack, deployment: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    path = f"/deployments/{deployment['id']}/create_flow_run"
    return dict(prefect(stack, path, {"parameters": parameters}))


def _deployment(stack: Stack) -> dict[str, Any] | None:
    found = prefect(stack, "/deployments/filter", {"deployments": {"name": {"any_": ["score"]}}})
    return dict(found[0]) if found else None


def _ended(stack: Stack, run_id: str) -> dict[str, Any] | None:
    run = prefect(stack, f"/flow_runs/{run_id}")
    return dict(run) if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED") else None


def _await(look: Any) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE_S
    while (found := look()) is None:
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.2)
    return dict(found)
