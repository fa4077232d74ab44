"""Shapes of an organ, to look at and to take: one click instead of a drawing."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from atlas_core.errors import InvalidInput
from atlas_core.model_spec import ModelRef
from atlas_core.records import Case
from atlas_core.review import NO_BASE, Annotator
from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from atlas_review.api.access import SignedIn, TheReview, annotator_of
from atlas_review.api.cases import CaseIdPath
from atlas_review.api.downloads import volume_response
from atlas_review.api.label_view import LabelView, label_view
from atlas_review.api.labels import require_task_of_case
from atlas_review.api.paths import API_PREFIX
from atlas_review.api.queue import MAX_ID, Word
from atlas_review.service import Review
from atlas_review.submissions import MaskSubmission, submit_mask
from atlas_review.volumes import Shape, ShapeKind, VoxelBox

router = APIRouter(tags=["shapes"])

MAX_SHAPE_ID = 120

ShapeId = Annotated[str, Path(max_length=MAX_SHAPE_ID)]
OrganName = Annotated[str, Query(max_length=63)]
BoxQuery = Annotated[
    str | None,
    Query(
        max_length=60,
        pattern=r"^[0-9]{1,5}(,[0-9]{1,5}){5}$",
        description="First and last voxel, both included, as 10,20,30,15,25,35; default: all.",
    ),
]


class ShapeView(BaseModel):
    """One shape of an organ."""

    id: str
    kind: ShapeKind = Field(
        description="original, revised, proposal, pseudo (of the ensemble that scored the case "
        "last), earlier (of one before, as the last iteration), or member (one model by itself)."
    )
    model: str = Field(description="Of a member: NAME-VERSION-HASH; else empty.")
    author: str | None
    models: tuple[ModelRef, ...]
    created_at: datetime | None
    in_force: bool
    volume_ml: float | None = Field(description="Millilitres; null of a member: not counted.")
    url: str = Field(description="Its mask, 0 and 1, cropped to what it fills.")


class ShapeList(BaseModel):
    """What is in force first, then newer before older versions, then the members."""

    shapes: list[ShapeView]


class Taking(BaseModel):
    """Where a shape is taken over, and over what."""

    model_config = ConfigDict(extra="forbid")

    organ: Word
    base: Word = Field(description="Latest version of the organ, or none: stays outside the box.")
    box_ijk: VoxelBox | None = Field(
        default=None, description="As of a region; default: the shape is taken as a whole."
    )
    task: int | None = Field(default=None, ge=1, le=MAX_ID)


@router.get("/cases/{case_id}/shapes")
def see_shapes(
    review: TheReview, who: SignedIn, case_id: CaseIdPath, organ: OrganName
) -> ShapeList:
    """Every shape that somebody or a model gave an organ."""
    case = review.catalog.case(case_id)
    found = review.shapes.of_organ(case.id, organ)
    return ShapeList(shapes=[_view(case.id, organ, shape) for shape in found])


@router.get("/cases/{case_id}/shapes/{shape_id}.nii.gz", response_class=Response)
async def download_shape(
    request: Request,
    review: TheReview,
    who: SignedIn,
    case_id: CaseIdPath,
    shape_id: ShapeId,
    organ: OrganName,
    box: BoxQuery = None,
) -> Response:
    """The mask of one shape, or what of it lies in a box: uint8 of 0 and 1, cropped to what it
    fills; its affine says where it lies."""
    case = await run_in_threadpool(review.catalog.case, case_id)
    shape = await run_in_threadpool(review.shapes.find, case.id, organ, shape_id)
    file = await review.on_volume(review.shapes.file, case, organ, shape, _box(box))
    name = f"{case.id}_{organ}_{shape.id}.nii.gz"
    return await run_in_threadpool(volume_response, request, review, who.user, case.id, file, name)


@router.post("/cases/{case_id}/shapes/{shape_id}/take", status_code=201)
async def take_shape(
    review: TheReview, who: SignedIn, case_id: CaseIdPath, shape_id: ShapeId, body: Taking
) -> LabelView:
    """Hand in a shape as the new label of its organ: as a whole, or in a box, with the label that
    it is based on around it. Rules and answers are those of a mask that is handed in."""
    case = await run_in_threadpool(review.catalog.case, case_id)
    await run_in_threadpool(require_task_of_case, review, case.id, body.task)
    return await review.on_volume(_take, review, case, shape_id, body, annotator_of(who))


def _take(
    review: Review, case: Case, shape_id: str, body: Taking, annotator: Annotator
) -> LabelView:
    shape = review.shapes.find(case.id, body.organ, shape_id)
    base = None if body.base == NO_BASE else review.versions.version(case.id, body.base)
    if base is not None and base.organ != body.organ:
        raise InvalidInput(
            "the base is a label of another organ",
            case=case.id,
            expected=body.organ,
            got=base.organ,
        )
    mask = review.shapes.taken(case, body.organ, shape, body.box_ijk, base)
    submission = MaskSubmission(case, body.organ, mask, annotator, body.base, body.task)
    return label_view(submit_mask(review.store, review.versions, submission))


def _view(case_id: str, organ: str, shape: Shape) -> ShapeView:
    version = shape.version
    return ShapeView(
        id=shape.id,
        kind=shape.kind,
        model=shape.model,
        author=version.author if version else None,
        models=version.models if version else (),
        created_at=version.created_at if version else None,
        in_force=version is not None and version.in_force,
        volume_ml=version.volume_ml if version else None,
        url=f"{API_PREFIX}/cases/{case_id}/shapes/{shape.id}.nii.gz?organ={organ}",
    )


def _box(text: str | None) -> VoxelBox | None:
    if text is None:
        return None
    a, b, c, d, e, f = map(int, text.split(","))
    return (a, b, c), (d, e, f)
