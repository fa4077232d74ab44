"""Cases and their volumes over HTTP."""

from __future__ import annotations

from typing import Annotated, Final

from atlas_core.records import Case
from atlas_core.review import CaseBrief, CaseFilter
from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from atlas_review.api.access import SignedIn, TheReview
from atlas_review.api.downloads import file_response, record_download, volume_response
from atlas_review.api.label_view import LabelView, label_view
from atlas_review.api.paths import API_PREFIX
from atlas_review.api.text_limit import NO_CONTROL
from atlas_review.service import Review
from atlas_review.volumes import CaseFile, OrganRegion, read_chunks, write_archive

router = APIRouter(tags=["cases"])

MAX_PAGE: Final = 500

CaseIdPath = Annotated[str, Path(max_length=100)]
OrganQuery = Annotated[str | None, Query(max_length=63)]


class FileView(BaseModel):
    """A volume: its address, and a checksum that identifies its content."""

    url: str
    sha256: str = Field(
        description="Of the content; for a derived volume, of its inputs. Also its ETag."
    )


class AttentionView(FileView):
    """The attention map of one organ: uint8, with the slope of 1/136 in its header."""

    organ: str
    attention_ml: float = Field(description="Attention size of the organ, in millilitres.")
    organ_ml: float = Field(description="Volume of its label in force, in millilitres; 0: none.")
    counts: bool = Field(description="False where the organ has an original label (§3.2 ⑥).")


class CaseView(BaseModel):
    """One case with all that its page needs."""

    id: str
    dataset: str
    licence: str
    shape: tuple[int, int, int]
    affine: tuple[tuple[float, float, float, float], ...]
    spacing_mm: tuple[float, float, float]
    ct: FileView
    labels: list[LabelView] = Field(description="The label in force of each organ.")
    label_map: FileView | None = Field(description="All labels in one map; null without labels.")
    attention: list[AttentionView] = Field(description="By falling attention size.")
    attention_map: FileView | None = Field(description="The largest value of all that count.")
    left_out: float = Field(
        description="Share of the body that no model was shown, since locating ruled organs out."
    )
    readings: list[str] = Field(description="Readings under which the case is scored.")
    flagged: bool
    flag_reason: str


class CaseList(BaseModel):
    """A page of cases."""

    total: int
    cases: list[CaseBrief]


class RegionList(BaseModel):
    """Attended regions of one organ, or of all organs that count."""

    threshold: float = Field(description="Attention from which a voxel counts as attended.")
    min_ml: float = Field(description="Smaller regions are left out; in millilitres.")
    regions: list[OrganRegion]


class LabelList(BaseModel):
    """Label versions, oldest first."""

    labels: list[LabelView]


class Flag(BaseModel):
    """Whether a case needs another look."""

    model_config = ConfigDict(extra="forbid")

    flagged: bool
    reason: str = Field(default="", max_length=2000, pattern=NO_CONTROL)


class Flagged(BaseModel):
    """The flag as it is now."""

    flagged: bool


@router.get("/cases")
def see_cases(
    review: TheReview,
    who: SignedIn,
    dataset: Annotated[str | None, Query(max_length=63)] = None,
    state: Annotated[str | None, Query(max_length=16)] = None,
    flagged: bool | None = None,
    offset: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 50,
) -> CaseList:
    """Cases by id, for the gallery."""
    total, cases = review.cases.page(CaseFilter(dataset, state, flagged), offset, limit)
    return CaseList(total=total, cases=cases)


@router.get("/cases/{case_id}")
def see_case(review: TheReview, who: SignedIn, case_id: CaseIdPath) -> CaseView:
    """One case."""
    return case_view(review, review.catalog.case(case_id))


@router.get("/cases/{case_id}/regions")
def see_regions(
    review: TheReview,
    who: SignedIn,
    case_id: CaseIdPath,
    organ: OrganQuery = None,
    threshold: Annotated[float | None, Query(ge=0, le=2)] = None,
    min_ml: Annotated[float | None, Query(ge=0, le=1e4)] = None,
) -> RegionList:
    """Attended regions, largest first; without an organ, those of each organ that counts,
    the largest 2,000."""
    case = review.catalog.case(case_id)
    lowest = review.settings.region_threshold if threshold is None else threshold
    smallest = review.settings.region_min_ml if min_ml is None else min_ml
    found = review.files.regions(case, organ, lowest, smallest)
    return RegionList(threshold=lowest, min_ml=smallest, regions=found)


@router.get("/cases/{case_id}/ct.nii.gz", response_class=Response)
def download_ct(
    request: Request, review: TheReview, who: SignedIn, case_id: CaseIdPath
) -> Response:
    """The CT, as it was imported."""
    case = review.catalog.case(case_id)
    return volume_response(
        request, review, who.user, case.id, review.files.ct(case), f"{case.id}_ct.nii.gz"
    )


@router.get("/cases/{case_id}/label_map.nii.gz", response_class=Response)
def download_label_map(
    request: Request, review: TheReview, who: SignedIn, case_id: CaseIdPath
) -> Response:
    """The label in force of every organ, in one map."""
    case = review.catalog.case(case_id)
    file = review.files.label_map(case)
    return volume_response(request, review, who.user, case.id, file, f"{case.id}_labels.nii.gz")


@router.get("/cases/{case_id}/attention.nii.gz", response_class=Response)
def download_attention(
    request: Request,
    review: TheReview,
    who: SignedIn,
    case_id: CaseIdPath,
    organ: OrganQuery = None,
) -> Response:
    """The attention map of one organ, cropped to the box of its attention, or the largest value of
    all that count, on the grid of the CT."""
    case = review.catalog.case(case_id)
    file = review.files.attention_map(case.id, organ)
    name = f"{case.id}_attention_{organ or 'all'}.nii.gz"
    return volume_response(request, review, who.user, case.id, file, name)


@router.get("/cases/{case_id}/download.zip", response_class=Response)
def download_archive(review: TheReview, who: SignedIn, case_id: CaseIdPath) -> Response:
    """CT, label map and attention map, with colours for ITK-SNAP and 3D Slicer."""
    case = review.catalog.case(case_id)
    files = {"ct.nii.gz": review.files.ct(case), "labels.nii.gz": review.files.label_map(case)}
    if review.files.organ_attention(case.id):
        files["attention.nii.gz"] = review.files.attention_map(case.id, None)
    record_download(review, who.user, case.id, f"{case.id}.zip")
    archive = write_archive(case.id, files, review.settings.organs)
    headers = {"Content-Disposition": f'attachment; filename="{case.id}.zip"'}
    return StreamingResponse(read_chunks(archive), media_type="application/zip", headers=headers)


@router.get("/cases/{case_id}/contact-sheet.png", response_class=Response)
def contact_sheet(
    request: Request, review: TheReview, who: SignedIn, case_id: CaseIdPath
) -> Response:
    """Three planes with labels (above) and attention (below)."""
    case = review.catalog.case(case_id)
    sheet = review.files.contact_sheet(case)
    return file_response(request, sheet, f"{case.id}.png", "image/png")


@router.get("/cases/{case_id}/labels")
def see_labels(
    review: TheReview,
    who: SignedIn,
    case_id: CaseIdPath,
    organ: OrganQuery = None,
    source: Annotated[str | None, Query(max_length=16)] = None,
) -> LabelList:
    """Every version from every source, including those kept as conflicts."""
    case = review.catalog.case(case_id)
    found = review.versions.versions(case.id, organ)
    return LabelList(
        labels=[label_view(one) for one in found if source in (None, one.source.value)]
    )


@router.get("/cases/{case_id}/labels/{version_id}.nii.gz", response_class=Response)
def download_label(
    request: Request,
    review: TheReview,
    who: SignedIn,
    case_id: CaseIdPath,
    version_id: Annotated[str, Path(max_length=32)],
) -> Response:
    """The file of one version; its `value` is the voxel value of the organ."""
    version = review.versions.version(case_id, version_id)
    name = f"{case_id}_{version.organ}_{version.source.value}-{version.id}.nii.gz"
    file = review.files.label(version)
    return volume_response(request, review, who.user, case_id, file, name)


@router.put("/cases/{case_id}/flag")
def flag(review: TheReview, who: SignedIn, case_id: CaseIdPath, body: Flag) -> Flagged:
    """Flag a case for another look, or remove the flag."""
    review.cases.flag(case_id, who.user, body.flagged, body.reason)
    return Flagged(flagged=body.flagged)


def case_view(review: Review, case: Case) -> CaseView:
    """`case` with all that its page needs."""
    address = f"{API_PREFIX}/cases/{case.id}"
    labels = [v for v in review.versions.versions(case.id) if v.in_force]
    organ_ml = {version.organ: version.volume_ml for version in labels}
    attention = review.files.organ_attention(case.id)
    reason = review.cases.flag_of(case.id)
    return CaseView(
        id=case.id,
        dataset=case.dataset,
        licence=review.catalog.dataset(case.dataset).licence,
        shape=case.shape,
        affine=case.affine,
        spacing_mm=case.geometry.spacing_mm,
        ct=_file_view(review.files.ct(case), f"{address}/ct.nii.gz"),
        labels=[label_view(version) for version in labels],
        label_map=_file_view(review.files.label_map(case), f"{address}/label_map.nii.gz")
        if labels
        else None,
        attention=[
            AttentionView(
                organ=one.organ,
                attention_ml=one.attention_ml,
                organ_ml=organ_ml.get(one.organ, 0.0),
                counts=one.counts,
                url=f"{address}/attention.nii.gz?organ={one.organ}&v={one.file.sha256}",
                sha256=one.file.sha256,
            )
            for one in attention
        ],
        attention_map=_file_view(
            review.files.attention_map(case.id, None), f"{address}/attention.nii.gz"
        )
        if attention
        else None,
        left_out=review.files.left_out(case.id),
        readings=[one.reading.value for one in review.cases.predictions(case.id)],
        flagged=reason is not None,
        flag_reason=reason or "",
    )


def _file_view(file: CaseFile, address: str) -> FileView:
    return FileView(url=f"{address}?v={file.sha256}", sha256=file.sha256)
