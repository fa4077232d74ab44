"""Labels handed in over HTTP, and drafts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Final

from atlas_core.errors import InvalidInput, NotFound, UnknownLabel
from atlas_core.label_versions import StaleBase, Submission
from atlas_core.records import Case
from atlas_core.revision_records import Draft, LabelVersion
from atlas_core.volume import Volume
from fastapi import APIRouter, Header, Path, Query, Request, Response
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.concurrency import run_in_threadpool

from atlas_review.access import SignedIn, TheReview
from atlas_review.case_files import ServedFile
from atlas_review.downloads import file_answer
from atlas_review.queue_routes import MAX_ID, TaskId
from atlas_review.service import Review
from atlas_review.uploads import (
    MULTIPART_FILE,
    Received,
    file_of,
    label_on_grid,
    on_disk,
    organ_mask_of,
    received_form,
)
from atlas_review.versions_view import LabelView, label_view

router = APIRouter(tags=["labels"])

_BASES: Final = TypeAdapter(dict[str, str])

DRAFT_BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@dataclass(frozen=True)
class MaskSubmission:
    """A checked mask, and what it is made from.

    Attributes:
        case, organ: what it is of.
        mask: uint8 ``[i, j, k]``, 0 and 1, on the CT's grid.
        author: who drew it.
        base: version that it was made from.
        task_id: in whose course, if any.
    """

    case: Case
    organ: str
    mask: Volume
    author: str
    base: str
    task_id: int | None = None


class SavedDraft(BaseModel):
    """A draft that is on disk."""

    saved_at: datetime
    sha256: str


@router.post("/cases/{case_id}/labels", status_code=201, openapi_extra=MULTIPART_FILE)
async def hand_in(
    request: Request,
    review: TheReview,
    who: SignedIn,
    case_id: Annotated[str, Path(max_length=100)],
    organ: Annotated[str, Query(max_length=63)],
    base: Annotated[
        str, Query(max_length=32, description="Version that it was made from, or none.")
    ],
    task: Annotated[int | None, Query(ge=1, le=MAX_ID)] = None,
    value: Annotated[
        int | None, Query(ge=1, le=255, description="Voxel value that means the organ.")
    ] = None,
) -> LabelView:
    """Hand in the mask of one organ on the grid of the CT; it is a new version."""
    case = await run_in_threadpool(_case_and_organ, review, case_id, organ)
    await run_in_threadpool(_require_task, review, case_id, task)
    async with received_form(request) as form:
        received = file_of(form, "label", plain_name=True)
        mask = await review.on_volume(_checked_mask, review, case, received, value)
    submission = MaskSubmission(case, organ, mask, who.user, base, task)
    return label_view(await review.on_volume(submit_mask, review, submission))


@router.put("/tasks/{task_id}/draft", openapi_extra=DRAFT_BODY)
async def save_draft(
    request: Request,
    review: TheReview,
    who: SignedIn,
    task_id: TaskId,
    x_base: Annotated[
        str, Header(max_length=10_000, description="JSON: organ → version it was made from.")
    ] = "{}",
) -> SavedDraft:
    """Keep your unfinished label map of this task; only you see it."""
    task = await run_in_threadpool(review.queue.task, task_id)
    case = await run_in_threadpool(review.catalog.case, task.case_id)
    base = _bases(x_base)
    with review.store.incoming() as folder:
        path = folder / "draft"
        with path.open("wb") as file:
            async for piece in request.stream():
                file.write(piece)
        label = await review.on_volume(label_on_grid, path, case)
    _require_values(label.values, review, case)
    volume = Volume(label.voxels, case.geometry)
    return await review.on_volume(_keep_draft, review, who.user, task_id, case, volume, base)


@router.get("/tasks/{task_id}/draft", response_class=Response)
def load_draft(request: Request, review: TheReview, who: SignedIn, task_id: TaskId) -> Response:
    """Your unfinished label map of this task; X-Base says what it was made from."""
    draft = review.drafts.find(task_id, who.user)
    file = ServedFile(review.store.path(draft.path), draft.sha256)
    answer = file_answer(request, file, f"task-{task_id}_draft.nii.gz")
    answer.headers["X-Base"] = json.dumps(draft.base)
    answer.headers["Last-Modified"] = draft.saved_at.strftime("%a, %d %b %Y %H:%M:%S GMT")
    return answer


@router.delete("/tasks/{task_id}/draft", status_code=204)
def drop_draft(review: TheReview, who: SignedIn, task_id: TaskId) -> None:
    """Forget your unfinished label map of this task."""
    old = review.drafts.drop(task_id, who.user)
    if old is None:
        raise NotFound("no draft of yours", got=f"task {task_id}")
    review.audit.add(datetime.now(UTC), who.user, "drop draft", {"task": task_id})
    review.store.remove(old)


def submit_mask(review: Review, handed_in: MaskSubmission) -> LabelVersion:
    """Store a mask and put it on record: first the file, then the row.

    Raises:
        StaleBase: its base is no longer in force; it is kept.
        InvalidInput, NotFound: as `LabelVersions.submit`; nothing is kept.
    """
    case, mask = handed_in.case, handed_in.mask
    stored = review.store.write_submission(case.id, handed_in.organ, mask)
    voxels = int(mask.voxels.sum())
    submission = Submission(
        case_id=case.id,
        organ=handed_in.organ,
        path=stored.path,
        sha256=stored.sha256,
        voxels=voxels,
        volume_ml=voxels * case.geometry.voxel_ml,
        author=handed_in.author,
        base=handed_in.base,
        task_id=handed_in.task_id,
    )
    try:
        version = review.versions.submit(submission)
    except StaleBase:
        raise
    except BaseException:
        review.store.remove(stored.path)
        raise
    if version.path != stored.path:  # the same mask was there already
        review.store.remove(stored.path)
    return version


def _case_and_organ(review: Review, case_id: str, organ: str) -> Case:
    if organ not in review.settings.organs:
        raise UnknownLabel(
            f"unknown organ {organ!r}",
            case=case_id,
            expected=f"one of {', '.join(review.settings.organs.names)}",
            got=organ,
        )
    return review.catalog.case(case_id)


def _require_task(review: Review, case_id: str, task_id: int | None) -> None:
    if task_id is not None and review.queue.task(task_id).case_id != case_id:
        raise InvalidInput("the task is about another case", case=case_id, got=f"task {task_id}")


def _checked_mask(review: Review, case: Case, received: Received, value: int | None) -> Volume:
    with on_disk(review.store, received.content) as path:
        return organ_mask_of(label_on_grid(path, case), case, value)


def _require_values(values: Iterable[int], review: Review, case: Case) -> None:
    known = {0, *review.settings.organs.labels}
    unknown = sorted(set(values) - known)
    if unknown:
        raise UnknownLabel(
            "the label map holds values that are no organ",
            case=case.id,
            expected=", ".join(str(value) for value in sorted(known)),
            got=", ".join(str(value) for value in unknown[:8]),
        )


def _bases(text: str) -> dict[str, str]:
    try:
        return _BASES.validate_json(text)
    except ValidationError:
        raise InvalidInput("X-Base cannot be read", expected='JSON as {"liver": "12"}') from None


def _keep_draft(
    review: Review, user: str, task_id: int, case: Case, label_map: Volume, base: dict[str, str]
) -> SavedDraft:
    stored = review.store.write_draft(case.id, label_map)
    draft = Draft(
        task_id=task_id,
        author=user,
        path=stored.path,
        sha256=stored.sha256,
        base=base,
        saved_at=datetime.now(UTC),
    )
    old = review.drafts.save(draft)
    if old is None:  # what autosave does every few seconds is no news
        review.audit.add(draft.saved_at, user, "begin draft", {"task": task_id})
    else:
        review.store.remove(old)
    return SavedDraft(saved_at=draft.saved_at, sha256=draft.sha256)
