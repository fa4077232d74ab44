"""Shards of a scoring run as runs of their own in a work pool, many at once.

Each is a run of the deployment ``score-shard``: a Kubernetes job in a cluster, a process on one
machine. The run that started them hands out the cases, so none is in two shards; what a shard that
died has left goes to another. A run that is started after one that died adopts the shards that are
still under way.
"""

# No `from __future__ import annotations` here: see `atlas_flows.scoring.flow`.

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from atlas_core.catalog import Catalog
from atlas_core.errors import ConfigurationError
from atlas_core.store import CaseStore
from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, StateType
from prefect.exceptions import ObjectNotFound
from pydantic import TypeAdapter

from atlas_flows.runs import CaseOutcome, Outcome, ProgressCounter
from atlas_flows.runs.crashed_runs import mark_interrupted_runs
from atlas_flows.scoring.case_scoring import ScoringEnsemble, ScoringPlan

SHARD_FLOW = "score-shard"

MAX_SHARD_CASES = 512
"""Of one shard: a job starts in seconds, and few cases are lost for long with one that dies."""

TAKEOVERS = 3
"""How often the cases of shards that died are given to others."""

POLL_S = 2.0

PAGE = 200
"""Most flow runs in one answer of Prefect."""

_ENSEMBLE = TypeAdapter(ScoringEnsemble)


@dataclass(frozen=True)
class Shard:
    """Cases of one run.

    Attributes:
        takeovers: how many runs before have died with them.
    """

    cases: tuple[str, ...]
    takeovers: int = 0


def into_shards(cases: Sequence[str], at_once: int) -> list[Shard]:
    """Consecutive `cases`, where there are enough in four shards for each of those `at_once`.

    >>> [len(one.cases) for one in into_shards([str(n) for n in range(10)], 1)]
    [3, 3, 3, 1]
    """
    size = max(1, min(MAX_SHARD_CASES, math.ceil(len(cases) / (4 * at_once))))
    return [Shard(tuple(cases[at : at + size])) for at in range(0, len(cases), size)]


class ShardRuns:
    """Scores the cases of a plan by shards.

    Args:
        at_once: shards under way at the same time.
        parameters: of the flow `score_shard`, beyond those that the plan says.
    """

    def __init__(
        self,
        plan: ScoringPlan,
        catalog: Catalog,
        store: CaseStore,
        at_once: int,
        parameters: dict[str, Any],
    ) -> None:
        self._plan = plan
        self._catalog = catalog
        self._store = store
        self._at_once = at_once
        self._key = (plan.request.reading, plan.ensemble.key)
        self._parameters = parameters | {
            "reading": plan.request.reading.value,
            "force": plan.request.force,
            "ensemble": _ENSEMBLE.dump_python(plan.ensemble, mode="json"),
        }
        # What is to be scored anew has a result already, which does not count.
        forced = plan.cases if plan.request.force else ()
        self._before = {case: self._number(case) for case in forced}
        self._client = get_client(sync_client=True)
        self._running: dict[UUID, Shard] = {}

    def run(self, progress: ProgressCounter) -> list[CaseOutcome]:
        """The outcomes of all cases, in the order in which shards ended.

        Raises:
            ConfigurationError: no deployment ``score-shard`` is served.
        """
        outcomes: list[CaseOutcome] = []
        with self._client:
            self._running = self._adopted()
            adopted = {case for shard in self._running.values() for case in shard.cases}
            waiting = deque(
                into_shards([c for c in self._plan.cases if c not in adopted], self._at_once)
            )
            while waiting or self._running:
                while waiting and len(self._running) < self._at_once:
                    shard = waiting.popleft()
                    self._running[self._start(shard)] = shard
                time.sleep(POLL_S)
                for ended, shard in self._ended():
                    done, left = self._settled(shard)
                    if left and _died(ended) and shard.takeovers < TAKEOVERS:
                        get_run_logger().warning(
                            "shard %s died; another takes over %d cases", ended.name, len(left)
                        )
                        waiting.append(replace(shard, cases=left, takeovers=shard.takeovers + 1))
                        left = ()
                    for outcome in (*map(_scored, done), *(_failed(c, ended) for c in left)):
                        progress.add(outcome)
                        outcomes.append(outcome)
        return outcomes

    def _adopted(self) -> dict[UUID, Shard]:
        """Shards of an earlier run with this ensemble and reading that have not ended."""
        mark_interrupted_runs(SHARD_FLOW)
        wanted = set(self._plan.cases)
        found = {}
        active = [state for state in StateType if state not in TERMINAL_STATES]
        for run in self._runs({"state": {"type": {"any_": active}}}):
            given = run.parameters
            if given.get("reading") != self._key[0].value:
                continue
            if _ENSEMBLE.validate_python(given.get("ensemble")).key == self._key[1]:
                cases = tuple(case for case in given.get("cases", ()) if case in wanted)
                found[run.id] = Shard(cases)
        return found

    def _start(self, shard: Shard) -> UUID:
        try:
            deployment = self._client.read_deployment_by_name(f"{SHARD_FLOW}/{SHARD_FLOW}")
        except ObjectNotFound:
            raise ConfigurationError(
                "nobody serves shards of a scoring run",
                expected=f"a deployment {SHARD_FLOW}",
                remedy="start the stack (`atlasloop up`), or score with shards=1",
            ) from None
        run = self._client.create_flow_run_from_deployment(
            deployment.id, parameters=self._parameters | {"cases": list(shard.cases)}
        )
        return run.id

    def _ended(self) -> list[tuple[FlowRun, Shard]]:
        """Takes the runs that have ended out of those that are under way."""
        mark_interrupted_runs(SHARD_FLOW)
        ids = [str(one) for one in self._running]
        over = [
            run
            for run in self._runs({"id": {"any_": ids}})
            if run.state is not None and run.state.is_final()
        ]
        return [(run, self._running.pop(run.id)) for run in over]

    def _runs(self, runs: dict[str, Any]) -> list[FlowRun]:
        return self._client.read_flow_runs(
            flow_filter=FlowFilter.model_validate({"name": {"any_": [SHARD_FLOW]}}),
            flow_run_filter=FlowRunFilter.model_validate(runs),
            limit=PAGE,
        )

    def _settled(self, shard: Shard) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Its cases that have a new result on record, and those that have not."""
        recorded = self._catalog.scored_cases(*self._key)
        done = {
            case
            for case in shard.cases
            if recorded.get(case, 0) == self._number(case) > self._before.get(case, 0)
        }
        return (
            tuple(case for case in shard.cases if case in done),
            tuple(case for case in shard.cases if case not in done),
        )

    def _number(self, case: str) -> int:
        return self._store.result_number(case, *self._key)


def _died(run: FlowRun) -> bool:
    """Whether the run ended without its own word: killed, evicted, cancelled by somebody."""
    return run.state_type in (StateType.CRASHED, StateType.CANCELLED)


def _scored(case: str) -> CaseOutcome:
    return CaseOutcome(case_id=case, outcome=Outcome.SCORED)


def _failed(case: str, run: FlowRun) -> CaseOutcome:
    said = "" if run.state is None else run.state.message or ""
    outcome = Outcome.NOT_TRIED if _died(run) else Outcome.FAILED
    return CaseOutcome(case_id=case, outcome=outcome, message=f"shard {run.name}: {said}"[:500])
