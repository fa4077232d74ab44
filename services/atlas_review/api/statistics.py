"""The state of the atlas, and the audit log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from atlas_core.errors import NotFound
from atlas_core.review import (
    TOP_SHARE,
    AuditEntry,
    CaseSize,
    OrganVolumes,
    ReviewStatistics,
    Throughput,
)
from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from atlas_review.api.access import SignedIn, TheReview
from atlas_review.auth import Role

router = APIRouter(tags=["statistics"])


class Statistics(BaseModel):
    """The atlas in numbers."""

    cases_by_state: dict[str, int]
    attention_by_dataset: dict[str, list[CaseSize]] = Field(description="The paper's Fig. 4.")
    top_share: float
    organ_volumes: dict[str, OrganVolumes] = Field(description="The paper's Fig. 1b and 9.")
    throughput: list[Throughput]


class AuditPage(BaseModel):
    """A page of the audit log, newest first."""

    total: int
    entries: Sequence[AuditEntry]


@router.get("/statistics")
def see_statistics(review: TheReview, who: SignedIn) -> Statistics:
    """Cases by state, attention by dataset, organ volumes, annotators' throughput."""
    numbers = ReviewStatistics(review.catalog)
    return Statistics(
        cases_by_state=review.cases.states(),
        attention_by_dataset=numbers.attention_by_dataset(review.settings.reading),
        top_share=TOP_SHARE,
        organ_volumes=numbers.organ_volumes(),
        throughput=numbers.throughput(),
    )


@router.get("/audit")
def see_audit(
    review: TheReview,
    who: SignedIn,
    offset: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> AuditPage:
    """Every write: who, what, when (managers; for others the page does not exist)."""
    if not who.may(Role.MANAGER):
        raise NotFound("no such resource")
    total, entries = review.audit.page(offset, limit)
    return AuditPage(total=total, entries=entries)
