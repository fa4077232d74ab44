"""The control of the loop demo: which cases it queues, and that the flow goes on from there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from atlas_core.loop import Iterations, review_outcome, steps_done
from atlas_core.records import IterationState
from atlas_core.review import Annotator, RevisionQueue
from atlas_flows.demos.loop_arm import queue_by_lot
from atlas_flows.loop import IterationStatus, LoopParameters, Queued, StepKind, next_step
from labelled_site import UNET, LabelledSite, cube, open_site

ANN = Annotator("ann")
PARAMETERS = LoopParameters(dataset="ours", iterations=1)
POOL = [f"case-{number}" for number in range(6)]
"""The site has one more case, which no lot may draw."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[LabelledSite]:
    opened = open_site(tmp_path)
    for case in POOL:
        opened.add_case(case)
        opened.add_prediction(case, {"liver": cube(1, 5)}, [UNET], hour=0)
    opened.add_case("known")
    opened.add_prediction("known", {"liver": cube(1, 5)}, [UNET], hour=0)
    with opened.catalog:
        yield opened


def queued(site: LabelledSite, t: int) -> list[str]:
    tasks = Queued.model_validate(steps_done(site.catalog, t)[StepKind.QUEUE.value]).tasks
    queue = RevisionQueue(site.catalog)
    return sorted(queue.task(task).case_id for task in tasks)


def test_the_flow_scores_and_then_waits_for_the_cases_of_the_lot(site: LabelledSite) -> None:
    begun = queue_by_lot(site.catalog, PARAMETERS, 0, POOL, 2, seed=8)
    assert (begun.t, begun.state) == (0, IterationState.OPEN)
    assert len(queued(site, 0)) == 2
    done = dict(steps_done(site.catalog, 0))
    status = IterationStatus(0, PARAMETERS, done)
    assert next_step(status).kind is StepKind.SCORE
    done[StepKind.SCORE.value] = {"ensemble": "x", "models": [], "cases": 6}
    tasks = Queued.model_validate(done[StepKind.QUEUE.value]).tasks
    status = IterationStatus(0, PARAMETERS, done, review=review_outcome(site.catalog, tasks))
    assert next_step(status).kind is StepKind.WAIT


def test_the_next_lot_passes_over_what_was_seen_and_a_stopped_one_is_drawn_again(
    site: LabelledSite,
) -> None:
    queue_by_lot(site.catalog, PARAMETERS, 0, POOL, 2, seed=8)
    first = queued(site, 0)
    queue = RevisionQueue(site.catalog)
    for _ in first:
        task = queue.next(ANN)
        assert task is not None
        queue.confirm(task.id, ANN, 60.0)
    Iterations(site.catalog).finish(0, IterationState.DONE)
    # Stopped after the tasks were opened, before the iteration was: they are opened once.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Iterations, "start", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            queue_by_lot(site.catalog, PARAMETERS, 1, POOL, 2, seed=8)
    queue_by_lot(site.catalog, PARAMETERS, 1, POOL, 2, seed=8)
    second = queued(site, 1)
    assert len(second) == 2
    assert not set(first) & set(second)
    assert {*first, *second} <= set(POOL)
