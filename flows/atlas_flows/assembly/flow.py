"""Flow `assemble`: one label map per case out of original, revised and pseudo labels (step 6).

Started from the form in the Prefect UI, by `atlasloop assemble`, or by the flow `iterate`. A run
may be killed at any point: the next one goes on where it ended.
"""

# No `from __future__ import annotations` here: Prefect resolves the flow's annotations outside of
# this module.

import time
from typing import Annotated

from atlas_core.catalog import Catalog
from atlas_core.records import DatasetName, Reading
from atlas_core.store import CaseStore
from prefect import flow, get_run_logger, runtime, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from pydantic import Field

from atlas_flows.assembly import case_assembly
from atlas_flows.assembly.case_assembly import (
    AssemblyPlan,
    AssemblyRequest,
    AssemblyRun,
    AssemblySummary,
)
from atlas_flows.runs import (
    CaseIds,
    CaseOutcome,
    CasesFailed,
    ModelReferences,
    PostProcessingByOrgan,
    ProgressCounter,
    not_tried,
)
from atlas_flows.runs.progress_artifact import ProgressArtifact
from atlas_flows.runs.shards import name_shards_by, run_shards, shard_state, split_into_shards
from atlas_flows.settings import Places

ROWS_IN_ARTIFACT = 100
"""Failures in the summary of the Prefect UI; all of them are in the log and in the result."""


def _run_name() -> str:
    return str(runtime.flow_run.parameters.get("dataset") or "all datasets")


@task(
    name="assemble-cases",
    description="Assembles a shard of cases, one after the other.",
    task_run_name=name_shards_by("cases"),
    cache_policy=NO_CACHE,
    persist_result=False,
)
def assemble_cases(
    cases: tuple[str, ...], run: AssemblyRun
) -> list[CaseOutcome] | State[list[CaseOutcome]]:
    """One shard, as a task that Prefect shows."""
    outcomes = case_assembly.assemble_shard(run, cases)
    return shard_state(outcomes, not_tried(outcomes))


@flow(
    name="assemble",
    description="One label map per case: per organ the original label, else the revised one, else "
    "the pseudo label. Cases whose labels have not changed are skipped; a run that was interrupted "
    "is completed by the next one.",
    flow_run_name=_run_name,
    persist_result=False,
)
def assemble(
    dataset: DatasetName | None = None,
    cases: CaseIds | None = None,
    reading: Reading = Reading.PAPER,
    models: ModelReferences | None = None,
    post_processing: PostProcessingByOrgan | None = None,
    in_flight: Annotated[int, Field(ge=1, le=64)] = 2,
    force: bool = False,
    masks: bool = False,
) -> AssemblySummary:
    """Assemble the cases whose labels have changed.

    Args:
        dataset: Assemble the cases of this dataset. Empty: of all datasets.
        cases: Only these case ids. Empty: all of the dataset.
        reading: Whose pseudo labels. They are those of the scores under this reading.
        models: NAME or NAME@T: pseudo labels of the newest ensemble of exactly these models.
            Empty: of the newest ensemble that scored the case.
        post_processing: Organ to what is kept of its pseudo label: largest (how many connected
            components) and min_ml (smallest component). Empty: all of it. Original and revised
            labels are never touched.
        in_flight: Cases worked on at the same time.
        force: Assemble also the cases whose labels have not changed.
        masks: Also write one mask file per organ.

    Raises:
        CasesFailed: some cases could not be assembled; it names them. All others are.
    """
    places = Places.read()
    request = AssemblyRequest(
        dataset=dataset,
        cases=tuple(cases or ()),
        reading=reading,
        models=tuple(models or ()),
        post_processing=post_processing or {},
        masks=masks,
        force=force,
    )
    with Catalog.open(places.catalog_url) as catalog:
        store = CaseStore(places.store)
        store.sweep()
        started = time.monotonic()
        plan = case_assembly.plan_assembly(request, catalog, store)
        outcomes = _assemble_all(plan, catalog, store, in_flight)
        summary = case_assembly.summarize(plan, catalog, outcomes, time.monotonic() - started)
    _publish(summary)
    if summary.failures:
        raise CasesFailed(summary, "assembled")
    return summary


def _assemble_all(
    plan: AssemblyPlan, catalog: Catalog, store: CaseStore, in_flight: int
) -> list[CaseOutcome]:
    get_run_logger().info("%d cases to assemble, %d up to date", len(plan.cases), plan.skipped)
    with ProgressArtifact(len(plan.cases), "assemble-progress", "Cases assembled") as shown:
        run = AssemblyRun(plan.request, catalog, store, ProgressCounter(len(plan.cases), shown))
        shards = {"cases": split_into_shards(plan.cases, in_flight)}
        return run_shards(assemble_cases, shards, run, in_flight)


def _publish(summary: AssemblySummary) -> None:
    """Where the labels come from, and the summary, as artifacts of the run."""
    create_table_artifact(
        [organ.model_dump() for organ in summary.organs],
        key="assemble-provenance",
        description="Cases by the source of each organ's label",
    )
    create_markdown_artifact(
        as_markdown(summary), key="assemble-summary", description="What was done"
    )


def as_markdown(summary: AssemblySummary) -> str:
    """Summary of a run for people, with a table of what failed and why."""
    sentence = (
        f"**{summary.assembled}** cases assembled, **{summary.skipped}** up to date, "
        f"**{len(summary.failures)}** not assembled, in {summary.seconds:.1f} s. Pseudo labels of "
        f"reading {summary.reading.value}."
    )
    return "\n".join([sentence, *summary.failures_as_markdown(ROWS_IN_ARTIFACT)])
