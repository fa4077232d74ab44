"""Comments on a case, an organ of it, or a place in it."""

from __future__ import annotations

from typing import Annotated

from atlas_core.errors import InvalidInput
from atlas_core.review import Comment
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from atlas_review.api.access import SignedIn, TheReview
from atlas_review.api.cases import CaseIdPath
from atlas_review.api.queue import Text, Word

router = APIRouter(tags=["comments"])

Index = Annotated[int, Field(ge=0, le=65535)]


class NewComment(BaseModel):
    """What somebody has to say."""

    model_config = ConfigDict(extra="forbid")

    text: Text
    organ: Word | None = None
    voxel_ijk: tuple[Index, Index, Index] | None = Field(
        default=None, description="Voxel of the CT that it is about, as a region's peak."
    )


class CommentList(BaseModel):
    """Comments, oldest first."""

    comments: list[Comment]


@router.get("/cases/{case_id}/comments")
def see_comments(review: TheReview, who: SignedIn, case_id: CaseIdPath) -> CommentList:
    """What everybody has said about a case."""
    return CommentList(comments=review.comments.of_case(review.catalog.case(case_id).id))


@router.post("/cases/{case_id}/comments", status_code=201)
def comment(review: TheReview, who: SignedIn, case_id: CaseIdPath, body: NewComment) -> Comment:
    """Say something about a case; whoever opens it reads it."""
    case = review.catalog.case(case_id)
    organ = None if body.organ is None else review.settings.organs[body.organ].name
    at = body.voxel_ijk
    if at is not None and not all(i < n for i, n in zip(at, case.shape, strict=True)):
        raise InvalidInput("the voxel does not lie in the CT", case=case.id, got=at)
    return review.comments.add(case.id, who.user, body.text, organ, at)
