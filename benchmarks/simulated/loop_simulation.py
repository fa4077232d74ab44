"""How long a whole atlas takes on so many nodes, as discrete events: a pure function of the times
that were measured.

Cases wait for a place in a run, for processors (the attention service's own work), for a GPU (the
models), for the catalog (orchestration), one after the other; the top of the priority list waits
for annotators. Every stage serves who came first.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import simpy


@dataclass(frozen=True)
class ServiceTimes:
    """Seconds that one case keeps one place of a stage busy.

    Attributes:
        attention_s: of one processor core: windows cut, blended and fused, files written.
        models_s: of one GPU: all windows by all models.
        orchestration_s: of flows and catalog, which are one.
        revision_s: of one annotator at work, for a case of the list's top.
    """

    attention_s: float
    models_s: float
    orchestration_s: float
    revision_s: float


@dataclass(frozen=True)
class Site:
    """What works at once.

    Attributes:
        nodes: each with one GPU.
        cores: of each node, for the attention service.
        in_flight: cases of each node that are under way at once.
        annotators: around the clock; who works eight hours a day counts for a third.
    """

    nodes: int
    cores: int = 16
    in_flight: int = 8
    annotators: float = 1.0


@dataclass(frozen=True)
class Simulated:
    """One pass over an atlas.

    Attributes:
        scored_hours: until every case is scored.
        hours: until every case of the top is revised, too.
        busy: share of that time for which each stage worked, 0..1.
    """

    scored_hours: float
    hours: float
    busy: dict[str, float]

    @property
    def bottleneck(self) -> str:
        """The stage that was busy for most of the time."""
        return max(self.busy, key=lambda stage: self.busy[stage])


def simulate(cases: int, site: Site, times: ServiceTimes, top_share: float = 0.05) -> Simulated:
    """One pass: `cases` are scored, then the first `top_share` of the list is revised.

    The list is complete only when all are scored, so revision begins then.
    """
    world = simpy.Environment()
    run = simpy.Resource(world, site.nodes * site.in_flight)
    stages = (
        (simpy.Resource(world, site.nodes * site.cores), times.attention_s),
        (simpy.Resource(world, site.nodes), times.models_s),
        (simpy.Resource(world, 1), times.orchestration_s),
    )

    def scored() -> Generator[Any, Any, None]:
        with run.request() as place:
            yield place
            for stage, seconds in stages:
                with stage.request() as turn:
                    yield turn
                    yield world.timeout(seconds)

    def all_scored() -> Generator[Any, Any, None]:
        yield world.all_of([world.process(scored()) for _ in range(cases)])

    world.run(world.process(all_scored()))
    scored_s = float(world.now)
    revised = round(cases * top_share)
    revision_s = revised * times.revision_s / site.annotators
    whole_s = scored_s + revision_s
    work = {
        "attention": cases * times.attention_s / (site.nodes * site.cores),
        "models": cases * times.models_s / site.nodes,
        "orchestration": cases * times.orchestration_s,
        "annotators": revision_s,
    }
    share = {stage: seconds / whole_s if whole_s else 0.0 for stage, seconds in work.items()}
    return Simulated(scored_s / 3600, whole_s / 3600, share)
