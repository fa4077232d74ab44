"""Drafts: a task's unfinished label map, kept for its author until the labels are handed in."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Final

from atlas_core.errors import InvalidInput, NotFound
from atlas_core.imaging import Volume
from atlas_core.records import Case
from atlas_core.review import Draft
from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from starlette.concurrency import run_in_threadpool

from atlas_review.api.access import SignedIn, TheReview
from atlas_review.api.downloads import file_response
from atlas_review.api.paths import API_PREFIX
from atlas_review.api.queue import PAGE_NAME, PAGE_NAME_LENGTH, TaskId
from atlas_review.service import Review
from atlas_review.volumes import CaseFile, label_on_grid, require_organ_values

router = APIRouter(tags=["labels"])

_BASES: Final = TypeAdapter(dict[str, str])

PageName = Annotated[
    str,
    Header(
        max_length=PAGE_NAME_LENGTH,
        pattern=PAGE_NAME,
        description="Window of your browser; see /tasks/{task_id}/lease.",
    ),
]

DRAFT_BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class SavedDraft(BaseModel):
    """A draft that is on disk."""

    saved_at: datetime
    sha256: str


class DraftView(SavedDraft):
    """One of the drafts of a task."""

    page: str = Field(description="Window of your browser that saved it; empty: none was named.")
    url: str


class DraftList(BaseModel):
    """Yours: first that of the window that works on the task, then newer before older ones."""

    drafts: list[DraftView]


@router.put("/tasks/{task_id}/draft", openapi_extra=DRAFT_BODY)
async def save_draft(
    request: Request,
    review: TheReview,
    who: SignedIn,
    task_id: TaskId,
    x_base: Annotated[
        str, Header(max_length=10_000, description="JSON: organ → version it was made from.")
    ] = "{}",
    x_page: PageName = "",
) -> SavedDraft:
    """Keep your unfinished label map of this task; only you see it. It replaces the one that the
    same window of your browser has saved; those of other windows stay."""
    task = await run_in_threadpool(review.queue.task, task_id)
    case = await run_in_threadpool(review.catalog.case, task.case_id)
    base = _parsed_bases(x_base)
    with review.store.incoming() as folder:
        path = folder / "draft"
        with path.open("wb") as file:
            async for chunk in request.stream():
                file.write(chunk)
        label = await review.on_volume(label_on_grid, path, case)
    require_organ_values(label, case, review.settings.organs)
    volume = Volume(label.voxels, case.geometry)
    return await review.on_volume(
        _store_draft, review, (who.user, x_page), task_id, case, volume, base
    )


@router.get("/tasks/{task_id}/drafts")
def see_drafts(review: TheReview, who: SignedIn, task_id: TaskId) -> DraftList:
    """Your unfinished label maps of this task, one of each window that you worked in."""
    return DraftList(
        drafts=[
            DraftView(
                page=draft.page,
                saved_at=draft.saved_at,
                sha256=draft.sha256,
                url=f"{API_PREFIX}/tasks/{task_id}/draft?page={draft.page}",
            )
            for draft in review.drafts.of_author(task_id, who.user)
        ]
    )


@router.get("/tasks/{task_id}/draft", response_class=Response)
def load_draft(
    request: Request,
    review: TheReview,
    who: SignedIn,
    task_id: TaskId,
    page: Annotated[str | None, Query(max_length=PAGE_NAME_LENGTH, pattern=PAGE_NAME)] = None,
) -> Response:
    """Your unfinished label map of this task, of one window or the first of all; X-Base says what
    it was made from."""
    draft = review.drafts.find(task_id, who.user, page)
    file = CaseFile(review.store.path(draft.path), draft.sha256)
    answer = file_response(request, file, f"task-{task_id}_draft.nii.gz")
    answer.headers["X-Base"] = json.dumps(draft.base)
    answer.headers["Last-Modified"] = draft.saved_at.strftime("%a, %d %b %Y %H:%M:%S GMT")
    return answer


@router.delete("/tasks/{task_id}/draft", status_code=204)
def drop_draft(review: TheReview, who: SignedIn, task_id: TaskId) -> None:
    """Delete your unfinished label map of this task."""
    paths = review.drafts.drop(task_id, who.user)
    if not paths:
        raise NotFound("no draft of yours", got=f"task {task_id}")
    review.audit.add(datetime.now(UTC), who.user, "drop draft", {"task": task_id})
    for path in paths:
        review.store.remove(path)


def _parsed_bases(text: str) -> dict[str, str]:
    try:
        return _BASES.validate_json(text)
    except ValidationError:
        raise InvalidInput("X-Base cannot be read", expected='JSON as {"liver": "12"}') from None


def _store_draft(
    review: Review,
    author: tuple[str, str],
    task_id: int,
    case: Case,
    label_map: Volume,
    base: dict[str, str],
) -> SavedDraft:
    user, page = author
    stored = review.store.write_draft(case.id, label_map)
    draft = Draft(
        task_id=task_id,
        author=user,
        page=page,
        path=stored.path,
        sha256=stored.sha256,
        base=base,
        saved_at=datetime.now(UTC),
    )
    replaced = review.drafts.save(draft)
    if not replaced:  # later saves come every few seconds and are not worth an entry
        review.audit.add(draft.saved_at, user, "begin draft", {"task": task_id})
    for path in replaced:
        review.store.remove(path)
    return SavedDraft(saved_at=draft.saved_at, sha256=draft.sha256)
