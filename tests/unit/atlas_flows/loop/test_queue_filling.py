"""Which cases an iteration queues, however often it is taken up again; and what became of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from atlas_core.errors import NotFound
from atlas_core.loop import Iterations, ReviewOutcome, record_step, review_outcome, steps_done
from atlas_core.review import Annotator, Portion, RevisionQueue, TaskFilter, TaskState
from atlas_flows.loop.queue_filling import QueueRequest, open_queue
from labelled_site import UNET, UNET_1, LabelledSite, cube, open_site

ANN = Annotator("ann")
TWO = QueueRequest(Portion(count=2))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[LabelledSite]:
    opened = open_site(tmp_path)
    for number in range(6):
        opened.add_case(f"case-{number}")
    with opened.catalog:
        yield opened


def score(site: LabelledSite, model: object = UNET, *, hour: int = 0) -> str:
    """Every case with one ensemble; equal sizes, so the list is in the order of ids."""
    keys = {
        site.add_prediction(case.id, {"liver": cube(1, 5)}, [model], hour=hour)  # type: ignore[list-item]
        for case in site.catalog.cases()
    }
    return keys.pop()


def cases_of(site: LabelledSite, tasks: tuple[int, ...]) -> list[str]:
    queue = RevisionQueue(site.catalog)
    return [queue.task(task).case_id for task in tasks]


def test_without_scores_it_says_what_to_do(site: LabelledSite) -> None:
    with pytest.raises(NotFound, match="atlasloop score"):
        open_queue(site.catalog, TWO)


def test_opened_again_it_is_the_same_queue_even_if_people_were_quick(site: LabelledSite) -> None:
    score(site)
    first = open_queue(site.catalog, TWO)
    assert cases_of(site, first.tasks) == ["case-0", "case-1"]
    queue = RevisionQueue(site.catalog)
    task = queue.next(ANN)
    assert task is not None
    queue.confirm(task.id, ANN, 60.0)
    assert open_queue(site.catalog, TWO) == first


@pytest.mark.parametrize("model", [UNET, UNET_1])
def test_the_next_iteration_passes_over_what_annotators_have_seen(
    site: LabelledSite, model: object
) -> None:
    """With new models, and also where all promotions were refused and the list is the same."""
    score(site)
    first = open_queue(site.catalog, TWO)
    finish_all(site)
    score(site, model, hour=1)
    second = open_queue(site.catalog, TWO, first.tasks)
    assert cases_of(site, second.tasks) == ["case-2", "case-3"]
    assert second.passed_over == 2
    assert open_queue(site.catalog, TWO, first.tasks) == second


def test_cases_that_were_skipped_come_again(site: LabelledSite) -> None:
    score(site)
    first = open_queue(site.catalog, TWO)
    queue = RevisionQueue(site.catalog)
    task = queue.next(ANN)
    assert task is not None
    queue.skip(task.id, ANN, "motion")
    finish_all(site)
    score(site, UNET_1, hour=1)
    second = open_queue(site.catalog, TWO, first.tasks)
    assert cases_of(site, second.tasks) == ["case-0", "case-2"]


def test_when_everything_was_seen_the_queue_is_empty(site: LabelledSite) -> None:
    score(site)
    everything = QueueRequest(Portion(share=1.0))
    first = open_queue(site.catalog, everything)
    finish_all(site)
    score(site, UNET_1, hour=1)
    assert open_queue(site.catalog, everything, first.tasks).tasks == ()
    again = QueueRequest(Portion(share=1.0), again=True)
    assert len(open_queue(site.catalog, again, first.tasks).tasks) == 6


def test_what_became_of_tasks_also_of_deleted_cases(site: LabelledSite) -> None:
    score(site)
    tasks = open_queue(site.catalog, QueueRequest(Portion(count=4))).tasks
    queue = RevisionQueue(site.catalog)
    queue.lease(tasks[0], ANN)
    queue.confirm(tasks[0], ANN, 30.0)
    queue.lease(tasks[1], ANN)
    queue.skip(tasks[1], ANN, "motion", 12.0)
    site.catalog.delete_case("case-3")
    assert review_outcome(site.catalog, tasks) == ReviewOutcome(
        confirmed=1, skipped=1, pending=1, gone=1, seconds=42.0
    )


def test_a_step_is_recorded_once(site: LabelledSite) -> None:
    opened = Iterations(site.catalog).start({})
    assert record_step(site.catalog, opened.t, "score", {"cases": 1})
    assert not record_step(site.catalog, opened.t, "score", {"cases": 2})
    record_step(site.catalog, opened.t, "queue", {})
    assert steps_done(site.catalog, opened.t) == {"score": {"cases": 1}, "queue": {}}


def finish_all(site: LabelledSite) -> None:
    queue = RevisionQueue(site.catalog)
    while queue.page(TaskFilter(state=TaskState.OPEN), 0, 1)[0]:
        task = queue.next(ANN)
        assert task is not None
        queue.confirm(task.id, ANN, 60.0)
