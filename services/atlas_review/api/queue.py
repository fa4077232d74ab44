"""The revision queue: lists, leases, verdicts, and the ways to end a task."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

from atlas_core.records import RankBy, Reading
from atlas_core.review import (
    AuditEntry,
    OpenedTasks,
    Portion,
    Task,
    TaskCounts,
    TaskFilter,
    TaskState,
    Verdict,
)
from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from atlas_review.api.access import AsManager, AsReader, SignedIn, TheReview, annotator_of
from atlas_review.api.cases import CaseView, case_view
from atlas_review.api.text_limit import NO_CONTROL
from atlas_review.service import Review

router = APIRouter(tags=["queue"])

MAX_NOTE: Final = 2000
MAX_ID: Final = 2**31 - 1
"""Ids are 32-bit integers in both databases."""

PAGE_NAME: Final = r"^[A-Za-z0-9-]*$"
PAGE_NAME_LENGTH: Final = 64

MAX_SECONDS: Final = 7 * 24 * 3600.0

TaskId = Annotated[int, Path(ge=1, le=MAX_ID)]
Name = Annotated[str | None, Query(max_length=100)]
Offset = Annotated[int, Query(ge=0, le=MAX_ID)]
Limit = Annotated[int, Query(ge=1, le=500)]
Seconds = Annotated[float, Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=MAX_NOTE, pattern=NO_CONTROL)]
Word = Annotated[str, Field(max_length=63, pattern=NO_CONTROL)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class QueueView(BaseModel):
    """The queue, and a page of it."""

    counts: TaskCounts = Field(description="Tasks by state, of the requested dataset and organ.")
    total: int = Field(description="Tasks that match all filters.")
    datasets: list[str]
    tasks: list[Task]


class OpenTasks(_Body):
    """How much of the priority list becomes tasks: one of share, count, minutes."""

    share: float | None = Field(default=None, gt=0, le=1)
    count: int | None = Field(default=None, ge=1, le=MAX_ID)
    minutes: float | None = Field(
        default=None, gt=0, le=1e9, allow_inf_nan=False, description="At 15 minutes a case."
    )
    dataset: Word | None = None
    reading: Reading | None = Field(default=None, description="Default: the service's.")
    by: RankBy = Field(default=RankBy.DISAGREEMENT, description="What the list is sorted by.")
    organs: list[Word] = Field(default_factory=list, max_length=255)


class NextTask(_Body):
    """Filters of the next case; without any, it is the one that needs revision most."""

    dataset: Word | None = None
    organ: Word | None = None


class LeaseAsk(_Body):
    """Which window of a browser asks for a lease."""

    page: str = Field(
        default="",
        max_length=PAGE_NAME_LENGTH,
        pattern=PAGE_NAME,
        description="Chosen at random by the window; empty: none.",
    )
    take_over: bool = Field(
        default=False, description="Work on in this window; the other one is refused from then on."
    )


class Leaving(_Body):
    """The window that is closed."""

    page: str = Field(min_length=1, max_length=PAGE_NAME_LENGTH, pattern=PAGE_NAME)


class Judgement(_Body):
    """An annotator's verdict on one organ."""

    verdict: Verdict | None = Field(description="null takes a verdict back.")
    error_type: Word | None = Field(default=None, description="See /error-types.")
    note: Text = ""


class Confirmation(_Body):
    """Time spent, from opening the case to the end, and what was looked at."""

    seconds_spent: Seconds = 0.0
    visited: list[Word] | None = Field(
        default=None,
        max_length=255,
        description="Organs that were looked at, with all their attended regions. Those of them "
        "without a verdict are confirmed, others stay unjudged. null: none, or all where the site "
        "allows it (ATLAS_REVIEW_CONFIRM_UNVISITED).",
    )


class Revision(_Body):
    """The label versions that make up the revision."""

    seconds_spent: Seconds = 0.0
    labels: dict[Word, Word] = Field(max_length=255, description="Organ → id of its new version.")


class Skip(_Body):
    """Why a case is skipped."""

    reason: Text
    seconds_spent: Seconds = 0.0


class Reopening(_Body):
    """Why a task is reopened."""

    reason: Text


class SecondReading(_Body):
    """What the second reader should look at."""

    note: Text = ""
    seconds_spent: Seconds = 0.0


class EndedTask(Task):
    """A task that has ended."""

    unjudged: tuple[str, ...] = Field(description="Organs on which nobody has given a verdict.")
    draft_kept_until: datetime | None = Field(
        default=None, description="Of a case that was skipped, if there is an unfinished drawing."
    )


class TaskDetail(Task):
    """A task with its case and its history."""

    case: CaseView
    confirm_unvisited: bool = Field(
        description="Whether the site lets a confirmation cover organs that nobody looked at."
    )
    history: list[AuditEntry]


@router.get("/queue")
def see_queue(
    review: TheReview,
    who: SignedIn,
    dataset: Name = None,
    organ: Name = None,
    state: TaskState | None = None,
    assignee: Name = None,
    warned: bool | None = None,
    offset: Offset = 0,
    limit: Limit = 50,
) -> QueueView:
    """Progress, and the tasks that match the filters, most urgent first.

    `warned`: only cases with warnings about their scan or labels, or only those without.
    """
    wanted = TaskFilter(dataset, organ, state, assignee, warned=warned)
    total, tasks = review.queue.page(wanted, offset, limit)
    return QueueView(
        counts=review.queue.counts(wanted),
        total=total,
        datasets=review.queue.datasets(),
        tasks=tasks,
    )


@router.post("/queue", status_code=201)
def open_tasks(review: TheReview, who: AsManager, body: OpenTasks) -> OpenedTasks:
    """Open tasks for the top of the priority list (managers); 409 where some scores lack what it is
    sorted by."""
    organs = [organ for organ in body.organs if review.settings.organs[organ]]
    return review.queue.open_tasks(
        Portion(body.share, body.count, body.minutes),
        who.user,
        reading=body.reading or review.settings.reading,
        by=body.by,
        dataset=body.dataset,
        organs=organs,
    )


@router.post(
    "/queue/next",
    response_model=Task,
    responses={204: {"description": "No task is left for you."}},
)
async def next_task(review: TheReview, who: SignedIn, body: NextTask | None = None) -> Response:
    """Lease the next case; a task that you held before is released."""
    wanted = TaskFilter(body.dataset, body.organ) if body else TaskFilter()
    task = await review.next_cases.take(annotator_of(who), wanted)
    if task is None:
        return Response(status_code=204)
    # Serialised by the model: FastAPI would build and validate it once more, as costly as the rest.
    return Response(task.model_dump_json(), media_type="application/json")


@router.get("/tasks/{task_id}")
def see_task(review: TheReview, who: SignedIn, task_id: TaskId) -> TaskDetail:
    """One task with its case and its history."""
    return _detail(review, review.queue.task(task_id))


@router.post("/tasks/{task_id}/lease")
def take_or_renew(
    review: TheReview, who: SignedIn, task_id: TaskId, body: LeaseAsk | None = None
) -> Task:
    """Take this task, or renew the lease on it; 409 when another holds it, or (titled "Open
    elsewhere") when another window of yours works on it."""
    ask = body or LeaseAsk()
    return review.queue.lease(task_id, annotator_of(who), ask.page or None, take_over=ask.take_over)


@router.delete("/tasks/{task_id}/lease", status_code=204)
def give_back(review: TheReview, who: SignedIn, task_id: TaskId) -> None:
    """Release the lease on this task."""
    review.queue.release(task_id, annotator_of(who))


@router.post("/tasks/{task_id}/leave", status_code=204)
def leave(review: TheReview, who: SignedIn, task_id: TaskId, body: Leaving) -> None:
    """A window of your browser that worked on this task is closed: you keep the lease, and another
    window may go on without taking over."""
    review.queue.leave(task_id, annotator_of(who), body.page)


@router.put("/tasks/{task_id}/organs/{organ}")
def judge_organ(
    review: TheReview,
    who: SignedIn,
    task_id: TaskId,
    organ: Annotated[str, Path(max_length=63)],
    body: Judgement,
) -> TaskDetail:
    """Judge whether the label of one organ is right and, if not, what is wrong with it (Fig. 5)."""
    task = review.queue.judge(
        task_id,
        annotator_of(who),
        organ,
        body.verdict,
        error_type=body.error_type,
        comment=body.note,
    )
    return _detail(review, task)


@router.post("/tasks/{task_id}/confirm")
def confirm(review: TheReview, who: SignedIn, task_id: TaskId, body: Confirmation) -> EndedTask:
    """Confirm that the organs that were looked at need no revision."""
    visited = body.visited
    if visited is None and not review.settings.confirm_unvisited:
        visited = []
    task = review.queue.confirm(task_id, annotator_of(who), body.seconds_spent, visited)
    return _ended(review, who.user, task)


@router.post("/tasks/{task_id}/revise")
def revise(review: TheReview, who: SignedIn, task_id: TaskId, body: Revision) -> EndedTask:
    """Submit the labels that you handed in as the revision; 409 where another label came first."""
    task = review.queue.revise(task_id, annotator_of(who), body.seconds_spent, body.labels)
    return _ended(review, who.user, task)


@router.post("/tasks/{task_id}/skip")
def skip(review: TheReview, who: SignedIn, task_id: TaskId, body: Skip) -> EndedTask:
    """Leave this case as it is, for a reason; an unfinished drawing is kept for a while."""
    task = review.queue.skip(task_id, annotator_of(who), body.reason, body.seconds_spent)
    hours = timedelta(hours=review.settings.skipped_draft_hours)
    for path in review.drafts.drop_skipped(datetime.now(UTC) - hours):
        review.store.remove(path)
    kept = review.drafts.exists(task.id, who.user)
    return _as_ended(task, task.updated_at + hours if kept else None)


@router.post("/tasks/{task_id}/take-back")
def take_back(review: TheReview, who: SignedIn, task_id: TaskId) -> Task:
    """Undo that you ended this task, and hold it again; 409 once its labels were assembled."""
    return review.queue.take_back(task_id, annotator_of(who))


@router.post("/tasks/{task_id}/reopen")
def reopen(review: TheReview, who: AsReader, task_id: TaskId, body: Reopening) -> Task:
    """Put a finished task back into the queue (readers)."""
    return review.queue.reopen(task_id, who.user, body.reason)


@router.post("/tasks/{task_id}/second-reader")
def ask_second_reader(
    review: TheReview, who: SignedIn, task_id: TaskId, body: SecondReading
) -> Task:
    """Pass the case to a reader other than you."""
    task = review.queue.ask_second_reader(task_id, annotator_of(who), body.note, body.seconds_spent)
    if body.note.strip():  # where the two of them talk
        review.comments.add(task.case_id, who.user, body.note)
    return task


def _ended(review: Review, user: str, task: Task) -> EndedTask:
    """Drop the draft of a task that ended: its labels were handed in, or are not needed."""
    for path in review.drafts.drop(task.id, user):
        review.store.remove(path)
    return _as_ended(task)


def _as_ended(task: Task, draft_kept_until: datetime | None = None) -> EndedTask:
    return EndedTask(
        **task.model_dump(), unjudged=task.without_verdict, draft_kept_until=draft_kept_until
    )


def _detail(review: Review, task: Task) -> TaskDetail:
    return TaskDetail(
        **task.model_dump(),
        case=case_view(review, review.catalog.case(task.case_id)),
        confirm_unvisited=review.settings.confirm_unvisited,
        history=review.queue.history(task.id),
    )
