"""The vocabulary: organs and error types."""

from __future__ import annotations

from atlas_core.review import ERROR_TYPES, ErrorType
from fastapi import APIRouter
from pydantic import BaseModel, Field

from atlas_review.api.access import SignedIn, TheReview

router = APIRouter(tags=["vocabulary"])


class OrganView(BaseModel):
    """One annotated structure."""

    name: str
    title: str = Field(description="For people.")
    group: str = Field(description="Organs that are looked at together; empty: none.")
    label: int = Field(description="Voxel value in label maps.")
    color: str = Field(description="#rrggbb")


class OrganList(BaseModel):
    """All annotated structures."""

    organs: list[OrganView]


class ErrorTypeList(BaseModel):
    """The taxonomy of the paper's Fig. 5."""

    error_types: tuple[ErrorType, ...]


@router.get("/organs")
def see_organs(review: TheReview, who: SignedIn) -> OrganList:
    """Names, groups, label values and colours."""
    return OrganList(
        organs=[
            OrganView(
                name=organ.name,
                title=organ.title,
                group=organ.group,
                label=organ.label,
                color=organ.colour,
            )
            for organ in review.settings.organs
        ]
    )


@router.get("/error-types")
def see_error_types(who: SignedIn) -> ErrorTypeList:
    """What can be wrong with a label (Fig. 5)."""
    return ErrorTypeList(error_types=ERROR_TYPES)
