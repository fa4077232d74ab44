"""Masks of one organ, handed in over HTTP."""

from __future__ import annotations

from typing import Annotated, BinaryIO

from atlas_core.errors import InvalidInput, UnknownLabel
from atlas_core.imaging import Volume
from atlas_core.records import Case
from fastapi import APIRouter, Path, Query, Request
from starlette.concurrency import run_in_threadpool

from atlas_review.api.access import SignedIn, TheReview, annotator_of
from atlas_review.api.forms import MULTIPART_FILE, file_in, received_form
from atlas_review.api.label_view import LabelView, label_view
from atlas_review.api.queue import MAX_ID
from atlas_review.service import Review
from atlas_review.submissions import MaskSubmission, submit_mask
from atlas_review.volumes import organ_mask, read_upload

router = APIRouter(tags=["labels"])


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
        int | None, Query(ge=1, le=255, description="Voxel value of the organ in the mask.")
    ] = None,
) -> LabelView:
    """Hand in the mask of one organ, on the grid of the CT, as a new version."""
    case = await run_in_threadpool(_case_with_organ, review, case_id, organ)
    await run_in_threadpool(require_task_of_case, review, case_id, task)
    async with received_form(request) as form:
        content = file_in(form, "label", plain_name=True)
        mask = await review.on_volume(_read_mask, review, case, content, value)
    submission = MaskSubmission(case, organ, mask, annotator_of(who), base, task)
    return label_view(
        await review.on_volume(submit_mask, review.store, review.versions, submission)
    )


def _case_with_organ(review: Review, case_id: str, organ: str) -> Case:
    if organ not in review.settings.organs:
        raise UnknownLabel(
            f"unknown organ {organ!r}",
            case=case_id,
            expected=f"one of {', '.join(review.settings.organs.names)}",
            got=organ,
        )
    return review.catalog.case(case_id)


def require_task_of_case(review: Review, case_id: str, task_id: int | None) -> None:
    if task_id is not None and review.queue.task(task_id).case_id != case_id:
        raise InvalidInput("the task is about another case", case=case_id, got=f"task {task_id}")


def _read_mask(review: Review, case: Case, content: BinaryIO, value: int | None) -> Volume:
    return organ_mask(read_upload(review.store, content, case).label, case, value)
