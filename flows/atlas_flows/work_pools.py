"""Makes the work pools of a cluster and the deployments in them known to the Prefect server.

    python -m atlas_flows.work_pools FOLDER

`FOLDER` holds one ``<pool>.json`` per work pool: Prefect's base job template, by which its worker
makes Kubernetes jobs (`deploy/helm`). Run again after every upgrade; what is there is brought up to
date, runs under way are left alone. On one machine `atlas_flows.serve` does all of this instead.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from atlas_core.errors import AtlasError, ConfigurationError

from atlas_flows.settings import Places

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.deployments.runner import RunnerDeployment

POOL_TYPE = "kubernetes"


@dataclass(frozen=True)
class Deployed:
    """A flow that a cluster offers.

    Attributes:
        flow: what runs.
        pool: where: ``cpu``, or ``gpu`` for what trains.
        schedule: cron line, or None: only when started.
        limit: runs at once; further ones wait.
    """

    flow: Flow[Any, Any]
    pool: str
    schedule: str | None = None
    limit: int = 1


def deployed_flows(places: Places) -> tuple[Deployed, ...]:
    """Every flow that runs in a cluster."""
    from atlas_flows.score import score

    # One run at a time: a second one would score the same cases; it waits instead.
    return (Deployed(score, "cpu", places.score_schedule),)


def read_templates(folder: Path) -> dict[str, dict[str, Any]]:
    """Base job templates by the name of their pool.

    Raises:
        ConfigurationError: there is none, or one is not JSON.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            found[path.stem] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigurationError(f"{path.name} is not JSON", got=error) from None
    if not found:
        raise ConfigurationError("no work pools", expected=f"POOL.json in {folder}")
    return found


def register(templates: dict[str, dict[str, Any]], flows: tuple[Deployed, ...]) -> tuple[str, ...]:
    """Create or update the pools, then the deployments; names of the latter.

    Raises:
        ConfigurationError: a flow belongs to a pool without template.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.types.entrypoint import EntrypointType

    for one in flows:
        if one.pool not in templates:
            raise ConfigurationError(
                f"flow {one.flow.name} has no work pool",
                expected=one.pool,
                got=", ".join(templates),
            )
    with get_client(sync_client=True) as client:
        for name, template in templates.items():
            pool = WorkPoolCreate(name=name, type=POOL_TYPE, base_job_template=template)
            client.create_work_pool(pool, overwrite=True)
    names = []
    for one in flows:
        made = one.flow.to_deployment(
            name=one.flow.name,
            work_pool_name=one.pool,
            cron=one.schedule,
            concurrency_limit=one.limit,
            tags=["atlasloop"],
            # The code is in the image: nothing is downloaded when a run starts.
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        deployment = cast("RunnerDeployment", made)  # a coroutine only where the caller is one
        deployment.apply()
        names.append(deployment.name)
    return tuple(names)


def main(arguments: list[str]) -> int:
    """Exit status."""
    if len(arguments) != 1:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    places = Places.read()
    templates = read_templates(Path(arguments[0]))
    places.require_prefect()
    places.enter_prefect()
    names = register(templates, deployed_flows(places))
    sys.stdout.write(f"work pools: {', '.join(templates)}; deployments: {', '.join(names)}\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except AtlasError as error:
        sys.exit(f"error: {error}")
