"""Click prompts on a case: what the nnInteractive server makes of them."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
from atlas_core.errors import NotFound
from atlas_core.imaging import write_volume
from atlas_core.records import Case
from fastapi import APIRouter, Response
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from atlas_review.api.access import SignedIn, TheReview
from atlas_review.api.cases import CaseIdPath
from atlas_review.api.downloads import VOLUME_TYPE
from atlas_review.prompts import MAX_PROMPTS, Prompt, PromptSessions
from atlas_review.service import Review
from atlas_review.volumes import filled_part

router = APIRouter(tags=["prompts"])


class PromptList(BaseModel):
    """All prompts of one shape, in their order."""

    model_config = ConfigDict(extra="forbid")

    prompts: Annotated[list[Prompt], Field(min_length=1, max_length=MAX_PROMPTS)]


@router.post("/cases/{case_id}/prompts", response_class=Response)
async def follow_prompts(
    review: TheReview, who: SignedIn, case_id: CaseIdPath, body: PromptList
) -> Response:
    """The mask that nnInteractive makes of prompts: uint8 of 0 and 1, cropped to what it fills; its
    affine says where it lies. Nothing is stored. 404 where no such server is configured."""
    case = await run_in_threadpool(review.catalog.case, case_id)
    mask = await mask_of_prompts(review, who.user, case, body.prompts)
    content = await review.on_volume(_cropped, case, mask)
    return Response(content, media_type=VOLUME_TYPE)


@router.delete("/cases/{case_id}/prompts", status_code=204)
async def end_prompts(review: TheReview, who: SignedIn, case_id: CaseIdPath) -> Response:
    """Give one's place at the nnInteractive server back: the case is left."""
    if review.prompts is not None:
        await run_in_threadpool(review.prompts.end, who.user, case_id)
    return Response(status_code=204)


async def mask_of_prompts(
    review: Review, who: str, case: Case, prompts: list[Prompt]
) -> NDArray[np.uint8]:
    """0 and 1 on the grid of the CT.

    Raises:
        NotFound: no nnInteractive server is configured.
        InvalidInput, LimitExceeded, Conflict, Unavailable: as `PromptSessions.mask`.
    """
    sessions: PromptSessions | None = review.prompts
    if sessions is None:
        raise NotFound(
            "no nnInteractive server is configured here",
            remedy="set ATLAS_REVIEW_NNINTERACTIVE_URL, and restart",
        )
    return await review.on_prompts(
        sessions.mask, who, case, lambda: review.files.read_ct(case), prompts
    )


def _cropped(case: Case, mask: NDArray[np.uint8]) -> bytes:
    start, filled = filled_part(mask.astype(np.bool_))
    grid = case.geometry.cropped(start, filled.shape)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "mask.nii.gz"
        write_volume(path, np.asfortranarray(filled.astype(np.uint8)), grid)
        return path.read_bytes()
