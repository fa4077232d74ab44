"""Prometheus metrics of the loop: what waits, what runs, what failed. No label names a case or a
person.

The services count what they do; these numbers are what catalog and Prefect's server know, asked at
every scrape by the process that tells Prefect of the review (`event_delivery`, `serve`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from atlas_core.catalog import Catalog
from atlas_core.errors import AtlasError
from atlas_core.metrics_server import MetricsServer
from atlas_core.review import count_backlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from atlas_flows.settings import Places

PREFIX: Final = "atlasloop_loop"

FAILURES_OF: Final = timedelta(hours=1)
"""How far back failures are counted: an alert that stays up for longer would hide the next one."""

MAX_FAILURES: Final = 200
"""Most failures that are told apart, by flow."""

RUNS: Final[Mapping[str, Mapping[str, Any]]] = {
    "running": {"type": {"any_": ["RUNNING"]}},
    "starting": {"type": {"any_": ["PENDING"]}},
    "waiting": {"name": {"any_": ["AwaitingConcurrencySlot"]}},
    "late": {"name": {"any_": ["Late"]}},
}
"""What the metric says of a run → Prefect's filter. late: no worker has taken it."""

TIMEOUT_S: Final = 3.0
"""For one answer of Prefect's; Prometheus waits ten seconds for all of ours."""

Ask = Callable[[str, object], Any]
"""Prefect's answer to a POST of this body to this path.

Raises:
    httpx.HTTPError, PrefectException: none.
"""


def serve_loop_metrics(places: Places, catalog: Catalog) -> MetricsServer | None:
    """Serve them at ``ATLASLOOP_METRICS_LISTEN``; None where no address is set. Prefect's settings
    are in place.

    Raises:
        ConfigurationError: the address cannot be listened at.
    """
    if not places.metrics_listen:
        return None
    registry = CollectorRegistry()
    registry.register(LoopMetrics(catalog, _prefect))
    return MetricsServer(
        registry, places.metrics_listen, places.metrics_hosts, env_prefix="ATLASLOOP_"
    )


class LoopMetrics(Collector):
    """The metrics; where catalog or Prefect do not answer, the other's are still served.

    Args:
        catalog: of the atlas.
        prefect: opens a connection to Prefect's server, for one scrape.
    """

    def __init__(
        self, catalog: Catalog, prefect: Callable[[], AbstractContextManager[Ask]]
    ) -> None:
        self._catalog = catalog
        self._prefect = prefect

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Nothing is asked to register it."""
        return iter(())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        # Prefect reads its settings when it is imported.
        import httpx
        from prefect.exceptions import PrefectException

        up = _gauge("up", "1: it answered", "part")
        for part, measure, troubles in (
            ("catalog", self._of_the_atlas, (AtlasError,)),
            ("prefect", self._of_the_runs, (httpx.HTTPError, PrefectException)),
        ):
            try:
                found = measure()
            except troubles:
                up.add_metric([part], 0)
            else:
                up.add_metric([part], 1)
                yield from found
        yield up

    def _of_the_atlas(self) -> list[GaugeMetricFamily]:
        backlog = count_backlog(self._catalog)
        cases = _gauge("cases", "Cases of the atlas")
        cases.add_metric([], backlog.cases)
        scored = _gauge("scored_cases", "Cases that the ensemble in use has scored", "reading")
        for reading, number in backlog.scored.items():
            scored.add_metric([reading.value], number)
        leases = _gauge("leases", "Cases that annotators hold")
        leases.add_metric([], backlog.leases)
        ending = _gauge("leases_ending", "Of these, about to run out")
        ending.add_metric([], backlog.leases_ending)
        events = _gauge("events_waiting", "Events of the review that Prefect was not told yet")
        events.add_metric([], backlog.events)
        return [cases, scored, leases, ending, events]

    def _of_the_runs(self) -> list[GaugeMetricFamily]:
        runs = _gauge("runs", "Runs of flows that have not ended", "state")
        failures = _gauge("failed_runs", "Runs that failed or crashed in the last hour", "flow")
        workers = _gauge("workers", "Workers online", "pool")
        with self._prefect() as ask:
            for state, wanted in RUNS.items():
                count = ask("/flow_runs/count", {"flow_runs": {"state": wanted}})
                runs.add_metric([state], count)
            for flow, number in _failures(ask).items():
                failures.add_metric([flow], number)
            for pool in ask("/work_pools/filter", {}):
                online = {"workers": {"status": {"any_": ["ONLINE"]}}}
                found = ask(f"/work_pools/{pool['name']}/workers/filter", online)
                workers.add_metric([pool["name"]], len(found))
        return [runs, failures, workers]


def _failures(ask: Ask) -> Counter[str]:
    since = (datetime.now(UTC) - FAILURES_OF).isoformat()
    wanted = {
        "flow_runs": {
            "state": {"type": {"any_": ["FAILED", "CRASHED"]}},
            "end_time": {"after_": since},
        },
        "sort": "END_TIME_DESC",
        "limit": MAX_FAILURES,
    }
    failed = [run["flow_id"] for run in ask("/flow_runs/filter", wanted)]
    if not failed:
        return Counter()
    flows = ask("/flows/filter", {"flows": {"id": {"any_": sorted(set(failed))}}})
    names = {flow["id"]: flow["name"] for flow in flows}
    return Counter(names[flow_id] for flow_id in failed if flow_id in names)


def _gauge(name: str, text: str, label: str | None = None) -> GaugeMetricFamily:
    labels = [] if label is None else [label]
    return GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=labels)


@contextmanager
def _prefect() -> Iterator[Ask]:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    # A scraper does not wait for a server that is away; it asks again by itself.
    with (
        temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
        get_client(sync_client=True, httpx_settings={"timeout": TIMEOUT_S}) as client,
    ):

        def ask(path: Any, body: object) -> Any:  # its client types every path there is
            return client.request("POST", path, json=body).json()

        yield ask
