"""Work pools of a cluster: registered with a real Prefect server, read by its worker's class."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from atlas_core.catalog import Catalog
from atlas_core.errors import ConfigurationError
from atlas_flows import work_pools
from atlas_flows.settings import Places
from kubernetes_validate import validate
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration
from prefect_server import prefect_server
from rendered_chart import VALUES, Manifest, job_templates, render


@pytest.fixture(scope="module", autouse=True)
def prefect() -> Iterator[None]:
    with prefect_server():
        yield


def test_pools_and_deployments_become_known_and_are_brought_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATLASLOOP_SCORE_SCHEDULE", "0 20 * * *")
    monkeypatch.setenv("ATLASLOOP_HOME", str(tmp_path))
    monkeypatch.setenv("ATLASLOOP_TRAINING_DEPLOYMENT", "finetune/finetune")
    for pool, base in job_templates(render("production")).items():
        (tmp_path / f"{pool}.json").write_text(json.dumps(base))
    templates = work_pools.read_templates(tmp_path)
    flows = work_pools.deployed_flows(Places.read())
    for memory in ("9Gi", "7Gi"):
        job = templates["cpu"]["job_configuration"]["job_manifest"]
        job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"] = memory
        names = work_pools.register(templates, flows)
    with get_client(sync_client=True) as client:
        pools = {pool.name: pool for pool in client.read_work_pools()}
        deployments = client.read_deployments()
    assert {name: pool.type for name, pool in pools.items()} == {
        "cpu": "kubernetes",
        "gpu": "kubernetes",
    }
    assert pools["cpu"].base_job_template == templates["cpu"]
    assert sorted(deployment.name for deployment in deployments) == sorted(names)
    assert not {"pull", "push"} & set(names), "no job of a pool may open the vault"
    on_gpus = {one.name for one in deployments if one.work_pool_name == "gpu"}
    assert on_gpus == {"finetune"}
    trainer = templates["gpu"]["variables"]["properties"]["image"]["default"]
    in_trainer = {one.name for one in deployments if one.job_variables.get("image") == trainer}
    assert in_trainer == {"import-model", "report", "evaluate", "iterate"}
    (score,) = [deployment for deployment in deployments if deployment.name == "score"]
    assert score.work_pool_name == "cpu"
    assert score.entrypoint == "atlas_flows.scoring.flow.score"
    assert score.global_concurrency_limit is not None
    assert score.global_concurrency_limit.limit == 1
    assert [str(entry.schedule.cron) for entry in score.schedules] == ["0 20 * * *"]  # type: ignore[union-attr]


def test_where_the_vault_is_a_process_serves_what_opens_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATLASLOOP_HOME", str(tmp_path))
    monkeypatch.setenv("ATLASLOOP_PREFECT_API_URL", str(PREFECT_API_URL.value()))
    Catalog.open(Places.read().catalog_url).close()
    with (tmp_path / "log").open("w+") as log:
        serving = subprocess.Popen(
            [sys.executable, "-m", "atlas_flows.serve", "pacs"], stdout=log, stderr=log
        )
        try:
            with get_client(sync_client=True) as client:
                while not {"pull", "push"} <= {one.name for one in client.read_deployments()}:
                    assert serving.poll() is None, (tmp_path / "log").read_text()
                    time.sleep(0.1)
                served = {one.name: one.work_pool_name for one in client.read_deployments()}
        finally:
            serving.terminate()
            serving.wait()
    assert served["pull"] is None and served["push"] is None


def test_what_cannot_be_registered_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no work pools"):
        work_pools.read_templates(tmp_path)
    (tmp_path / "cpu.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"cpu\.json is not JSON"):
        work_pools.read_templates(tmp_path)
    with pytest.raises(ConfigurationError, match="has no work pool"):
        work_pools.register({"gpu": {}}, work_pools.deployed_flows(Places.read()))


@pytest.mark.parametrize("values", VALUES)
def test_prefect_turns_job_templates_into_valid_restricted_jobs(values: str) -> None:
    for pool, base in job_templates(render(values)).items():
        manifest = asyncio.run(_job(base, {"image": "other/image:1"}))
        spec = manifest["spec"]["template"]["spec"]
        # Prefect's class insists on them here; Kubernetes ignores them.
        assert (spec.pop("completions"), spec.pop("parallelism")) == (1, 1)
        (job,) = spec["containers"]
        assert job["args"] == ["prefect", "flow-run", "execute"]
        validate(manifest, "1.32", strict=True)
        assert job["image"] == "other/image:1"
        assert {v["name"] for v in job["env"]} >= {"ATLASLOOP_CATALOG_URL", "PREFECT_API_URL"}
        assert job["securityContext"]["readOnlyRootFilesystem"] is True
        assert spec["serviceAccountName"] == "site-atlasloop-flow-run"
        wants = job["resources"]["limits"].get("nvidia.com/gpu")
        assert wants == (1 if pool == "gpu" and values != "trial" else None)
        labels = manifest["spec"]["template"]["metadata"]["labels"]
        assert labels["app.kubernetes.io/component"] == "flow-run"


async def _job(base: Manifest, values: dict[str, Any]) -> Manifest:
    """The job that the worker would make, without its labels for one run."""
    made = await KubernetesWorkerJobConfiguration.from_template_and_values(
        base_job_template=base, values=values
    )
    made.command = "prefect flow-run execute"
    made._populate_env_in_manifest()
    made._populate_image_if_not_present()
    made._populate_command_if_not_present()
    container = made.job_manifest["spec"]["template"]["spec"]["containers"][0]
    if isinstance(container["args"], str):
        container["args"] = container["args"].split()
    manifest: Manifest = made.job_manifest
    return manifest
