"""Fills the revision queue with the top of a priority list, as a step of the loop (④ and ⑤)."""

from __future__ import annotations

import urllib.request
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from atlas_core.catalog import Catalog
from atlas_core.errors import NotFound
from atlas_core.loop import PriorityListName, cases_seen, tasks_of
from atlas_core.records import RankBy, Reading
from atlas_core.review import Portion, RevisionQueue

from atlas_flows.loop.state_machine import Queued

WHO = "atlasloop"
"""The author of these tasks in the audit log."""

ANSWER_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class QueueRequest:
    """Which part of which priority list goes into the queue.

    Attributes:
        by: what the list is sorted by.
        ensemble: whose list; None: the one that scored last.
        dataset: only its cases; None: all.
        organs: only these count; empty: all.
        again: also cases that annotators have seen before.
    """

    portion: Portion
    reading: Reading = Reading.PAPER
    ensemble: str | None = None
    dataset: str | None = None
    organs: Sequence[str] = ()
    again: bool = False
    by: RankBy = RankBy.DISAGREEMENT


def open_queue(catalog: Catalog, request: QueueRequest, before: Collection[int] = ()) -> Queued:
    """Open tasks for the top of a priority list; called again, it returns the same tasks.

    Args:
        before: tasks that earlier iterations opened, perhaps from the same list.

    Raises:
        NotFound: no case is scored.
        Conflict: some scores lack what the list is sorted by.
    """
    ensemble = request.ensemble or catalog.latest_ensemble(request.reading, request.dataset)
    if ensemble is None:
        raise NotFound(
            "no case is scored under this reading",
            got=request.reading.value,
            remedy="import cases and score them: `atlasloop import`, `atlasloop score`",
        )
    name = PriorityListName(request.reading, ensemble, request.dataset)
    seen = set() if request.again else cases_seen(catalog, name, before)
    RevisionQueue(catalog).open_tasks(
        request.portion,
        WHO,
        reading=request.reading,
        by=request.by,
        ensemble=ensemble,
        dataset=request.dataset,
        organs=request.organs,
        without=seen,
    )
    return Queued(tasks=tasks_of(catalog, name, before), passed_over=len(seen))


def review_answers(url: str) -> bool:
    """Whether the review service is ready."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=ANSWER_TIMEOUT_S) as answer:  # noqa: S310
            answer.read()
    except OSError:
        return False
    return True
