"""Flow `score-shard`: some cases of a run of `score`, in a run of their own."""

# No `from __future__ import annotations` here: see `atlas_flows.scoring.flow`.

from typing import Annotated

from atlas_core.catalog import Catalog
from atlas_core.records import Reading
from atlas_core.store import CaseStore
from atlasloop.client import AttentionClient
from prefect import flow, runtime
from prefect.client.orchestration import get_client
from pydantic import Field

from atlas_flows.runs import CaseIds, CasesFailed
from atlas_flows.runs.crashed_runs import process_tag
from atlas_flows.scoring import case_scoring
from atlas_flows.scoring.case_scoring import (
    ScoreRequest,
    ScoreSummary,
    ScoringEnsemble,
    ScoringPlan,
)
from atlas_flows.scoring.flow import score_all
from atlas_flows.scoring.shard_runs import SHARD_FLOW
from atlas_flows.settings import Places


def _run_name() -> str:
    cases = runtime.flow_run.parameters["cases"]
    return f"{cases[0]} and {len(cases) - 1} more"


@flow(
    name=SHARD_FLOW,
    description="Some cases of a run of `score`, which starts and watches it.",
    flow_run_name=_run_name,
    persist_result=False,
)
def score_shard(
    cases: Annotated[CaseIds, Field(min_length=1)],
    ensemble: ScoringEnsemble,
    reading: Reading = Reading.PAPER,
    in_flight: Annotated[int, Field(ge=1, le=64)] = 2,
    force: bool = False,
    patience_s: Annotated[float, Field(ge=0, le=86_400)] = 300.0,
) -> ScoreSummary:
    """Score these cases.

    Args:
        cases: Case ids; nobody else scores them.
        ensemble: Models in the versions that the whole run scores by.
        reading: See `score`.
        in_flight: Cases worked on at the same time.
        force: Score also what is scored.
        patience_s: Seconds to wait for a service that does not answer before the run ends.

    Raises:
        CasesFailed: some cases could not be scored; all others are recorded.
    """
    places = Places.read()
    _tag_this_run()
    request = ScoreRequest(reading, None, tuple(cases), (), force)
    plan = ScoringPlan(request, ensemble, tuple(cases), 0)
    with (
        Catalog.open(places.catalog_url) as catalog,
        AttentionClient(places.attention_address) as client,
    ):
        patience = case_scoring.Patience(total_s=patience_s)
        summary = score_all(plan, client, catalog, CaseStore(places.store), in_flight, patience)
    if summary.failures:
        raise CasesFailed(summary, "scored")
    return summary


def _tag_this_run() -> None:
    """By this a shard whose process is gone is told from one that works."""
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(runtime.flow_run.id)
        client.update_flow_run(run.id, tags=[*run.tags, process_tag()])
