"""Flow `score`: every case through the attention service, then the priority list (steps 2 to 4).

Started from the form in the Prefect UI, by schedule, or by `atlasloop score`. A run may be killed
at any point: the next one goes on where it ended.
"""

# No `from __future__ import annotations` here: Prefect resolves the flow's annotations outside of
# this module.

import threading
import time
from contextvars import copy_context
from typing import Annotated, Any, Self, cast
from uuid import UUID

import httpx
from atlas_core.case_store import CaseStore
from atlas_core.catalog import Catalog
from atlas_core.records import CaseId, RankedCase, Reading
from atlasloop.client import AttentionClient
from prefect import flow, get_run_logger, runtime, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import PrefectException
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import opaque, unmapped
from pydantic import Field

from atlas_flows import scoring
from atlas_flows.priority_list import as_rows
from atlas_flows.scoring import (
    CaseOutcome,
    CasesFailed,
    Outcome,
    Plan,
    Progress,
    ScoreRequest,
    ScoreSummary,
    ScoringRun,
)
from atlas_flows.settings import Places

PROGRESS_EVERY_S = 2.0
"""Time between two updates of the progress artifact: an update is a request to the server."""

PROGRESS_LAST_S = 10.0
"""How long the end of a run waits for its last update."""

ROWS_IN_ARTIFACT = 100
"""Cases in the ranking table of the Prefect UI; it draws every row at once."""


def _shard_name() -> str:
    cases = runtime.task_run.parameters["cases"]
    return cases[0] if len(cases) == 1 else f"{cases[0]} and {len(cases) - 1} more"


def _run_name() -> str:
    given = runtime.flow_run.parameters
    return f"{given.get('dataset') or 'all datasets'}, {Reading(given['reading']).value}"


@task(
    name="score-cases",
    description="Scores a shard of cases, one after the other, through the attention service.",
    task_run_name=_shard_name,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def score_cases(cases: tuple[str, ...], run: ScoringRun) -> list[CaseOutcome]:
    """Prefect's view of one shard."""
    return scoring.score_shard(run, cases)


@flow(
    name="score",
    description="Predict, fuse and rank: attention maps, pseudo labels and the priority list. "
    "Cases that the ensemble in service has scored already are skipped; a run that was "
    "interrupted is completed by the next one.",
    flow_run_name=_run_name,
    persist_result=False,
)
def score(
    dataset: str | None = None,
    reading: Reading = Reading.PAPER,
    cases: list[CaseId] | None = None,
    models: list[str] | None = None,
    in_flight: Annotated[int, Field(ge=1, le=64)] = 2,
    limit: Annotated[int, Field(ge=1)] | None = None,
    force: bool = False,
    patience_s: Annotated[float, Field(ge=0)] = 300.0,
) -> ScoreSummary:
    """Score what is not scored yet, then publish the ranking.

    Args:
        dataset: Score the cases of this dataset. Empty: of all datasets.
        reading: How predictions become attention. paper: Eq. 1–4 to the letter. released: the
            thresholds and openings of the paper's published code.
        cases: Only these case ids. Empty: all of the dataset.
        models: NAME (its newest version) or NAME@T. Empty: the whole ensemble in service.
        in_flight: Cases worked on at the same time.
        limit: Score at most so many cases. Empty: all.
        force: Score also the cases that this ensemble has scored already.
        patience_s: Seconds to wait for a service that is away before the run ends.

    Raises:
        CasesFailed: some cases could not be scored; it names them. All others are recorded.
    """
    places = Places.read()
    request = ScoreRequest(reading, dataset, tuple(cases or ()), tuple(models or ()), force, limit)
    patience = scoring.Patience(total_s=patience_s)
    with (
        Catalog.open(places.catalog_url) as catalog,
        AttentionClient(places.attention_address) as client,
    ):
        store = CaseStore(places.store)
        registered = {model.spec.name for model in catalog.models()}
        ensemble = scoring.await_ensemble(client, request.models, registered, patience)
        plan = scoring.plan(request, ensemble, catalog, store)
        summary = _score_all(plan, client, catalog, store, in_flight, patience)
        _publish(summary, catalog.ranking(reading, plan.ensemble.key, dataset))
    if summary.failures:
        raise CasesFailed(summary)
    return summary


def _score_all(
    plan: Plan,
    client: AttentionClient,
    catalog: Catalog,
    store: CaseStore,
    in_flight: int,
    patience: scoring.Patience,
) -> ScoreSummary:
    started = time.monotonic()
    get_run_logger().info(
        "%d cases to score, %d scored already by %s",
        len(plan.cases),
        plan.skipped,
        plan.ensemble.key,
    )
    shards = scoring.shards(plan.cases, in_flight)
    # A runner of its own, because the number of slots is a parameter of the run.
    slots: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=in_flight)
    with _ProgressInUi(len(plan.cases)) as shown, slots as runner:
        progress = Progress(len(plan.cases), shown)
        run = ScoringRun(plan, client, catalog, store, progress, patience)
        try:
            futures = runner.map(score_cases, {"cases": shards, "run": unmapped(opaque(run))})
            # Prefect's types call these futures; they are what the tasks returned.
            results = cast(list[list[CaseOutcome]], futures.result())
            outcomes = [outcome for shard in results for outcome in shard]
        except BaseException:
            # Cancelled or interrupted: end the calls under way, or their threads would be awaited.
            run.stop.set()
            client.close()
            raise
    return ScoreSummary(
        reading=plan.request.reading,
        ensemble=plan.ensemble.key,
        skipped=plan.skipped,
        outcomes=tuple(outcomes),
        seconds=round(time.monotonic() - started, 3),
    )


class _ProgressInUi:
    """Shows counts in the run's log, to the observer of this process, and as a progress artifact.

    A context manager. The artifact is brought up to date by a thread of its own: a server that is
    slow or away must not slow the scoring, which does not depend on who watches.
    """

    def __init__(self, total: int) -> None:
        created = create_progress_artifact(
            0.0 if total else 100.0, key="score-progress", description="Cases scored"
        )
        self._artifact = cast(UUID, created)  # a coroutine only where the caller is one
        self._log = get_run_logger()
        self._observer = scoring.current_observer()
        self._percent = 0.0
        self._ended = threading.Event()
        # In a copy of our context, where Prefect keeps its settings and the run. Not waited for by
        # the interpreter: Prefect's client tries for a minute to reach a server that is away.
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._keep_showing,), daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(timeout=PROGRESS_LAST_S)

    def __call__(self, done: int, total: int, outcome: CaseOutcome) -> None:
        if outcome.good:
            self._log.info("%s %s in %.1f s", outcome.case_id, outcome.outcome, outcome.seconds)
        else:
            self._log.error("%s %s: %s", outcome.case_id, outcome.outcome, outcome.message)
        if self._observer is not None:
            self._observer(done, total, outcome)
        self._percent = 100.0 * done / total

    def _keep_showing(self) -> None:
        shown = 0.0
        ended = False
        while not ended:
            ended = self._ended.wait(PROGRESS_EVERY_S)
            percent = self._percent
            if percent != shown:
                try:
                    update_progress_artifact(self._artifact, progress=percent)
                except (httpx.HTTPError, PrefectException) as error:
                    self._log.warning("progress could not be shown: %s", type(error).__name__)
                    return
                shown = percent


def _publish(summary: ScoreSummary, ranking: list[RankedCase]) -> None:
    """Ranking and summary as artifacts of the run."""
    create_table_artifact(
        as_rows(ranking[:ROWS_IN_ARTIFACT]),
        key="score-ranking",
        description=f"Priority list, reading {summary.reading.value}: the first "
        f"{min(len(ranking), ROWS_IN_ARTIFACT)} of {len(ranking)} cases",
    )
    create_markdown_artifact(as_markdown(summary), key="score-summary", description="What was done")


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
    if summary.failures:
        lines += ["", "| case | outcome | why |", "|---|---|---|"]
        lines += [
            f"| {case.case_id} | {case.outcome} | {case.message.replace('|', '/')} |"
            for case in summary.failures
        ]
    return "\n".join(lines)
