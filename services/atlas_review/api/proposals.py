"""Proposals: labels that were handed in and must not come into force by themselves."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field

from atlas_review.api.access import AsReader, SignedIn, TheReview, annotator_of
from atlas_review.api.cases import CaseIdPath
from atlas_review.api.label_view import LabelView, label_view
from atlas_review.api.queue import Limit, Offset

router = APIRouter(tags=["labels"])


class Proposal(LabelView):
    """A label that waits for somebody to accept it."""

    case_id: str


class ProposalList(BaseModel):
    """A page of proposals, newest first."""

    total: int
    proposals: list[Proposal]


class Acceptance(BaseModel):
    """What the acceptor has compared the proposal with."""

    model_config = ConfigDict(extra="forbid")

    over: str = Field(
        max_length=32, description="Latest version of the organ, over which it is put, or none."
    )


@router.get("/proposals")
def see_proposals(
    review: TheReview, who: AsReader, offset: Offset = 0, limit: Limit = 50
) -> ProposalList:
    """Labels that were handed in without the lease of their case, or made from an older version,
    and that nobody has accepted (readers)."""
    total, found = review.versions.proposals(offset, limit)
    views = [Proposal(**label_view(one).model_dump(), case_id=one.case_id) for one in found]
    return ProposalList(total=total, proposals=views)


@router.post("/cases/{case_id}/proposals/{proposal_id}/accept", status_code=201)
def accept(
    review: TheReview,
    who: SignedIn,
    case_id: CaseIdPath,
    proposal_id: Annotated[str, Path(max_length=32)],
    body: Acceptance,
) -> LabelView:
    """Put a proposal into force, as its author's; for whoever holds the case, and for readers."""
    return label_view(review.versions.accept(case_id, proposal_id, annotator_of(who), body.over))
