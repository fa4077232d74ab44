"""Flow `score`: every case through the attention service, then the priority list (steps 2 to 4).

Started from the form in the Prefect UI, by schedule, or by `atlasloop score`. A run may be killed
at any point: the next one goes on where it ended.
"""

# No `from __future__ import annotations` here: Prefect resolves the flow's annotations outside of
# this module.

import time
from typing import Annotated

from atlas_core.catalog import Catalog
from atlas_core.ensembles import EnsembleName
from atlas_core.errors import Conflict
from atlas_core.records import DatasetName, RankBy, Reading
from atlas_core.store import CaseStore
from atlasloop.client import AttentionClient
from prefect import flow, get_run_logger, runtime, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from pydantic import Field

from atlas_flows.runs import (
    CaseIds,
    CaseOutcome,
    CasesFailed,
    ModelReferences,
    Outcome,
    ProgressCounter,
    not_tried,
)
from atlas_flows.runs.progress_artifact import ProgressArtifact
from atlas_flows.runs.shards import name_shards_by, run_shards, shard_state, split_into_shards
from atlas_flows.scoring import case_scoring
from atlas_flows.scoring.case_scoring import ScoreRequest, ScoreSummary, ScoringPlan, ScoringRun
from atlas_flows.scoring.priority_list import as_rows, of_other_ensembles
from atlas_flows.scoring.shard_runs import ShardRuns
from atlas_flows.settings import Places

ROWS_IN_ARTIFACT = 100
"""Cases in the ranking table of the Prefect UI; it draws every row at once."""

_BY = RankBy.DISAGREEMENT
"""What that table is sorted by."""


def _run_name() -> str:
    given = runtime.flow_run.parameters
    return f"{given.get('dataset') or 'all datasets'}, {Reading(given['reading']).value}"


@task(
    name="score-cases",
    description="Scores a shard of cases, one after the other, through the attention service.",
    task_run_name=name_shards_by("cases"),
    cache_policy=NO_CACHE,
    persist_result=False,
)
def score_cases(
    cases: tuple[str, ...], run: ScoringRun
) -> list[CaseOutcome] | State[list[CaseOutcome]]:
    """One shard, as a task that Prefect shows."""
    outcomes = case_scoring.score_shard(run, cases)
    return shard_state(outcomes, not_tried(outcomes))


@flow(
    name="score",
    description="Predict, fuse and rank: attention maps, pseudo labels and the priority list. "
    "Cases that the ensemble has scored already are skipped; a run that was "
    "interrupted is completed by the next one.",
    flow_run_name=_run_name,
    persist_result=False,
)
def score(
    dataset: DatasetName | None = None,
    reading: Reading = Reading.PAPER,
    cases: CaseIds | None = None,
    models: ModelReferences | None = None,
    in_flight: Annotated[int, Field(ge=1, le=64)] = 2,
    limit: Annotated[int, Field(ge=1)] | None = None,
    force: bool = False,
    patience_s: Annotated[float, Field(ge=0, le=86_400)] = 300.0,
    ensemble: EnsembleName | None = None,
    shards: Annotated[int, Field(ge=1, le=256)] = 1,
) -> ScoreSummary:
    """Score what is not scored yet, then publish the ranking.

    Args:
        dataset: Score the cases of this dataset. Empty: of all datasets.
        reading: How predictions become attention. paper: Eq. 1–4 to the letter. released: the
            thresholds and openings of the paper's published code.
        cases: Only these case ids. Empty: all of the dataset.
        models: NAME (its version in service) or NAME@T, in place of an ensemble. Empty: the
            ensemble.
        in_flight: Cases worked on at the same time, in each shard.
        limit: Score at most so many cases. Empty: all.
        force: Score also the cases that this ensemble has scored already.
        patience_s: Seconds to wait for a service that does not answer before the run ends.
        ensemble: Name of one that is loaded. Empty: the one in use.
        shards: Runs of their own that score parts side by side, in the work pool. 1: this run does
            it all.

    Raises:
        CasesFailed: some cases could not be scored; it names them. All others are recorded.
    """
    places = Places.read()
    request = ScoreRequest(
        reading, dataset, tuple(cases or ()), tuple(models or ()), force, limit, ensemble
    )
    patience = case_scoring.Patience(total_s=patience_s)
    with (
        Catalog.open(places.catalog_url) as catalog,
        AttentionClient(places.attention_address) as client,
    ):
        store = CaseStore(places.store)
        on_record = case_scoring.members_on_record(catalog)
        chosen = case_scoring.await_ensemble(client, request, on_record, patience)
        plan = case_scoring.plan_scoring(request, chosen, catalog, store)
        if shards == 1:
            summary = score_all(plan, client, catalog, store, in_flight, patience)
        else:
            given = {"in_flight": in_flight, "patience_s": patience_s}
            summary = _score_in_shards(plan, ShardRuns(plan, catalog, store, shards, given))
        others = catalog.scored_otherwise(reading, plan.ensemble.key, dataset)
        _publish(summary, catalog, dataset, others)
    if summary.failures:
        raise CasesFailed(summary, "scored")
    return summary


def score_all(
    plan: ScoringPlan,
    client: AttentionClient,
    catalog: Catalog,
    store: CaseStore,
    in_flight: int,
    patience: case_scoring.Patience,
) -> ScoreSummary:
    """Score the cases of a plan in this process, `in_flight` at once."""
    started = time.monotonic()
    get_run_logger().info(
        "%d cases to score, %d scored already by %s",
        len(plan.cases),
        plan.skipped,
        plan.ensemble.key,
    )
    with ProgressArtifact(len(plan.cases), "score-progress", "Cases scored") as shown:
        progress = ProgressCounter(len(plan.cases), shown)
        run = ScoringRun(plan, client, catalog, store, progress, patience)
        shards = {"cases": split_into_shards(plan.cases, in_flight)}
        outcomes = run_shards(score_cases, shards, run, in_flight, on_abort=client.close)
    return ScoreSummary(
        reading=plan.request.reading,
        ensemble=plan.ensemble.key,
        skipped=plan.skipped,
        outcomes=tuple(outcomes),
        seconds=round(time.monotonic() - started, 3),
    )


def _score_in_shards(plan: ScoringPlan, runs: ShardRuns) -> ScoreSummary:
    started = time.monotonic()
    with ProgressArtifact(len(plan.cases), "score-progress", "Cases scored") as shown:
        outcomes = runs.run(ProgressCounter(len(plan.cases), shown))
    return ScoreSummary(
        reading=plan.request.reading,
        ensemble=plan.ensemble.key,
        skipped=plan.skipped,
        outcomes=tuple(outcomes),
        seconds=round(time.monotonic() - started, 3),
    )


def _publish(summary: ScoreSummary, catalog: Catalog, dataset: str | None, others: int) -> None:
    """Ranking and summary as artifacts of the run; `others`: see `of_other_ensembles`."""
    text = as_markdown(summary)
    try:
        ranking = catalog.ranking(summary.reading, summary.ensemble, dataset, _BY)
    except Conflict as refused:
        # Older scores that are not compared with these do not make what was done undone.
        get_run_logger().warning("no priority list: %s", refused)
        text += f"\n\n**No priority list by {_BY.value}:** {refused}."
    else:
        create_table_artifact(
            as_rows(ranking[:ROWS_IN_ARTIFACT], _BY),
            key="score-ranking",
            description=f"Priority list by {_BY.value}, reading {summary.reading.value}: the first "
            f"{min(len(ranking), ROWS_IN_ARTIFACT)} of {len(ranking)} cases. "
            f"{of_other_ensembles(others)}",
        )
    create_markdown_artifact(text, key="score-summary", description="What was done")


def as_markdown(summary: ScoreSummary) -> str:
    """Summary of a run for people, with a table of what failed and why."""
    lines = [
        f"**{summary.count(Outcome.SCORED)}** cases scored, "
        f"**{summary.count(Outcome.FOUND)}** found in the store and recorded, "
        f"**{summary.skipped}** scored before, **{len(summary.failures)}** not scored, "
        f"in {summary.seconds:.1f} s.",
        "",
        f"Reading {summary.reading.value}, ensemble `{summary.ensemble}`.",
    ]
    return "\n".join([*lines, *summary.failures_as_markdown()])
