"""Makes the work pools of a cluster and the deployments in them known to the Prefect server.

    python -m atlas_flows.work_pools FOLDER

`FOLDER` holds one ``<pool>.json`` per work pool: Prefect's base job template, by which its worker
makes Kubernetes jobs (`deploy/helm`). Run again after every upgrade; what is there is brought up to
date, runs under way are left alone. On one machine `atlas_flows.serve` does all of this instead.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from atlas_core.errors import AtlasError, ConfigurationError

from atlas_flows.settings import Places

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.deployments.runner import RunnerDeployment
    from prefect.events import DeploymentEventTrigger

POOL_TYPE = "kubernetes"

PACS = "pacs"
"""Of flows that open the vault: no work pool, in whose jobs any flow may run, but a process beside
the receiver (`atlas_flows.serve`)."""


@dataclass(frozen=True)
class Deployed:
    """A flow that a site offers.

    Attributes:
        flow: what runs.
        pool: where: ``cpu``, ``gpu`` for what trains, or ``pacs`` (see `PACS`).
        torch: it needs torch wherever it runs: the image of the pool ``gpu``.
        schedule: cron line, or None: only when started.
        limit: runs at once; further ones wait.
        triggers: events that start it.
        parameters: of runs that nobody gives others, as those by schedule.
    """

    flow: Flow[Any, Any]
    pool: str
    torch: bool = False
    schedule: str | None = None
    limit: int = 1
    triggers: tuple[DeploymentEventTrigger, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def deployment(self, pool: str | None = None, image: str | None = None) -> RunnerDeployment:
        """As Prefect's server keeps it.

        Args:
            pool: work pool; None: served by the process that asks.
            image: instead of the pool's.
        """
        from prefect.types.entrypoint import EntrypointType
        from prefect.utilities.callables import ParameterSchema

        class ClosedSchema(ParameterSchema):
            """Without this word, Prefect takes parameters that the flow does not have, and the run
            fails when its turn comes."""

            additionalProperties: Literal[False] = False  # noqa: N815  JSON Schema's word

        made = self.flow.to_deployment(
            name=self.flow.name,
            parameters=dict(self.parameters),
            work_pool_name=pool,
            job_variables=None if image is None else {"image": image},
            cron=self.schedule,
            concurrency_limit=self.limit,
            triggers=list(self.triggers),
            tags=["atlasloop"],
            # The code is installed: nothing is downloaded when a run starts.
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        deployment = cast("RunnerDeployment", made)  # a coroutine only where the caller is one
        parameters = deployment._parameter_openapi_schema
        deployment._parameter_openapi_schema = ClosedSchema(
            **parameters.model_dump(), additionalProperties=False
        )
        return deployment


def deployed_flows(places: Places) -> tuple[Deployed, ...]:
    """Every flow that is offered. One run of each at a time, but for shards: a second one would
    work on the same cases or models; it waits instead.

    Raises:
        ConfigurationError: a parameter of scheduled runs cannot be.
    """
    from atlas_flows.assembly.flow import assemble
    from atlas_flows.importing.flow import import_cases
    from atlas_flows.loop.automations import when_drained
    from atlas_flows.loop.flow import iterate
    from atlas_flows.loop.revise_flow import revise
    from atlas_flows.models.evaluate_flow import evaluate
    from atlas_flows.models.finetune_flow import finetune
    from atlas_flows.models.import_flow import import_model
    from atlas_flows.pacs.pull_flow import pull
    from atlas_flows.pacs.push_flow import push
    from atlas_flows.release.flow import release
    from atlas_flows.reports.flow import report
    from atlas_flows.scoring.flow import score
    from atlas_flows.scoring.ranking_flow import ranking
    from atlas_flows.scoring.shard_flow import score_shard

    # A GPU for what trains alone; where the loop trains in its own run, that is the loop, too.
    loop_pool = "gpu" if places.training_deployment is None else "cpu"
    return (
        Deployed(import_cases, "cpu"),
        Deployed(import_model, "cpu", torch=True),
        Deployed(
            score,
            "cpu",
            schedule=places.score_schedule,
            parameters=_checked(score, places.score_parameters),
        ),
        Deployed(score_shard, "cpu", limit=places.score_shards),
        Deployed(ranking, "cpu"),
        Deployed(revise, "cpu"),
        Deployed(assemble, "cpu"),
        Deployed(release, "cpu"),
        # Surface Dice.
        Deployed(report, "cpu", torch=True),
        Deployed(evaluate, "cpu", torch=True),
        Deployed(pull, PACS),
        Deployed(push, PACS),
        Deployed(finetune, "gpu"),
        # It promotes, which evaluates; see decision 0081.
        Deployed(iterate, loop_pool, torch=True, triggers=(when_drained(),)),
    )


def _checked(flow: Flow[Any, Any], parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    from prefect.exceptions import ParameterTypeError

    try:
        known = flow.parameters.properties.keys()
        if unknown := sorted(parameters.keys() - known):
            raise ConfigurationError(
                f"flow {flow.name} has no parameter {unknown[0]}", expected=", ".join(known)
            )
        flow.validate_parameters(dict(parameters))
    except ParameterTypeError as error:
        _, *wrong = str(error).splitlines()
        raise ConfigurationError(
            f"a parameter of flow {flow.name} cannot be",
            got="; ".join(line.strip(" -") for line in wrong),
            remedy="mend the setting ATLASLOOP_SCORE_PARAMETERS",
        ) from None
    return parameters


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
    """Create or update the pools, then the deployments; names of the latter. Flows that open the
    vault are left to the process that serves them.

    Raises:
        ConfigurationError: a flow belongs to a pool without template.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate

    flows = tuple(one for one in flows if one.pool != PACS)
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
        image = _image(templates, "gpu") if one.torch and one.pool != "gpu" else None
        deployment = one.deployment(one.pool, image)
        deployment.apply()
        names.append(deployment.name)
    return tuple(names)


def _image(templates: dict[str, dict[str, Any]], pool: str) -> str:
    """What runs of a pool run in, unless something else is said."""
    return str(templates[pool]["variables"]["properties"]["image"]["default"])


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
    from atlas_flows.loop.automations import notify

    notify(places.notification_block)
    sys.stdout.write(f"work pools: {', '.join(templates)}; deployments: {', '.join(names)}\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except AtlasError as error:
        sys.exit(f"error: {error}")
