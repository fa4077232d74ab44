"""The MONAI Label protocol, for stock clients: 3D Slicer's extension and `MONAILabelClient` 0.8.5.

Images and labels come from the case store, `infer` answers with the labels in force: no model runs
here. In this protocol voxel value k means the k-th organ, whatever its value in the organ scheme.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from typing import Annotated, Any, Final

from atlas_core.errors import InvalidInput, NotFound
from atlas_core.pacs import Transfers
from atlas_core.review import USER_NAME, Annotator, Task, TaskFilter, TaskState
from fastapi import APIRouter, Body, Depends, Path, Query, Request, Response
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from atlas_review.api import (
    MULTIPART_FILE,
    Credentials,
    SignedIn,
    TheReview,
    annotator_of,
    check_password,
    file_in,
    identity,
    problem,
    received_form,
    record_download,
    volume_response,
)
from atlas_review.auth import Identity
from atlas_review.monai_label.image_ids import ImageId, ImageIds
from atlas_review.monai_label.label_maps import LabelMapSubmission, submit_label_map
from atlas_review.monai_label.results import ResultForm, dense_label_map
from atlas_review.service import Review

router = APIRouter(tags=["MONAI Label"])

MODEL: Final = "pseudo_label"
STRATEGY: Final = "attention"
FINAL: Final = "final"
GIVE_BACK: Final = "give_back"
"""Parameter of a strategy: give the case back that is open, and take another."""

ImageQuery = Annotated[str, Query(max_length=4096)]
Params = Annotated[dict[str, Any] | None, Body(max_length=64)]
Name = Annotated[str, Path(max_length=100)]
Output = Annotated[str, Query(pattern="^(all|image|json|dsa|asap)?$", max_length=8)]


def image_ids(review: TheReview) -> ImageIds:
    """The ids that this service signs."""
    lifetime_s = review.settings.capability_minutes * 60
    return ImageIds(review.secret, lifetime_s, partial(_case_of_series, review))


def _case_of_series(review: Review, uid: str) -> str:
    """
    Args:
        uid: as the PACS's images have it after de-identification.

    Raises:
        NotFound: no case came as this series.
    """
    case_id = Transfers(review.catalog).of_series(uid).case_id
    if case_id is None:
        raise NotFound("this series is no case yet", got=uid, remedy="see `atlasloop pacs list`")
    return case_id


Ids = Annotated[ImageIds, Depends(image_ids)]


@router.get("/auth/")
def auth(review: TheReview) -> dict[str, Any]:
    """Whether signing in is required."""
    enabled = not review.settings.insecure
    return {"enabled": enabled, "client_id": "atlasloop", "realm": "atlasloop"}


@router.post("/auth/token")
async def token(request: Request, review: TheReview) -> dict[str, str]:
    """A bearer token for a local account."""
    async with received_form(request) as form:
        name, password = form.get("username"), form.get("password")
    try:
        given = Credentials.model_validate({"username": name, "password": password})
    except ValidationError:
        raise InvalidInput(
            "username or password is missing or too long", expected="a form with both"
        ) from None
    who = await check_password(request, review, given)
    lifetime = timedelta(hours=review.settings.session_hours)
    start = review.sign_ins.start
    secret, _ = await run_in_threadpool(start, "bearer", who.user, who.roles, lifetime)
    return {"access_token": secret, "token_type": "bearer"}


@router.get("/auth/token/valid")
async def token_is_valid(who: Annotated[Identity, Depends(identity)]) -> dict[str, str]:
    """200 while the token is valid, else 401."""
    return {"username": who.user}


@router.get("/info/")
def info(review: TheReview, who: SignedIn) -> dict[str, Any]:
    """What is offered: organs, one model that answers with stored labels, and strategies."""
    names = list(review.settings.organs.names)
    wanted = {STRATEGY: "The case that needs revision most"} | {
        f"{STRATEGY}_{organ.name}": f"The case with most attention on the {organ.title}"
        for organ in review.settings.organs
    }
    strategies = {
        name: {"description": text, "config": {GIVE_BACK: False}} for name, text in wanted.items()
    }
    return {
        "name": "Atlas Loop",
        "description": "Revision queue of an atlas; labels are those in force",
        "version": "0.8.5",
        "labels": names,
        "models": {
            MODEL: {
                "type": "segmentation",
                "labels": names,
                "dimension": 3,
                "description": "The label in force of every organ, as it is stored",
                "config": {},
            }
        },
        "trainers": {},
        "strategies": strategies,
        "scoring": {},
        "train_stats": {},
        "datastore": _datastore_stats(review),
    }


@router.post("/activelearning/{strategy}")
async def next_sample(
    review: TheReview, who: SignedIn, ids: Ids, strategy: Name, params: Params = None
) -> dict[str, Any]:
    """The case that the caller holds already, or else the next one of the queue, leased to them;
    {} if none is left. With `give_back` the former is given back."""
    wanted = TaskFilter(organ=_organ_of(review, strategy))
    annotator = annotator_of(_acting_identity(who, params))
    task = None
    if not (params or {}).get(GIVE_BACK):
        task = await run_in_threadpool(review.client_queue.resume, annotator, wanted)
    if task is None:
        task = await review.next_client_cases.take(annotator, wanted)
    if task is None:
        return {}
    sample = await run_in_threadpool(_sample, review, ids, task, annotator.name)
    return sample | {"client_id": (params or {}).get("client_id")}


def _sample(review: Review, ids: ImageIds, task: Task, who: str) -> dict[str, Any]:
    case = review.catalog.case(task.case_id)
    in_force = review.versions.in_force(case.id)
    bases = {organ: version.id for organ, version in in_force.items()}
    path = review.files.ct(case).path
    digest = review.files.sha256(path)
    name = f"{case.id}_{digest[:8]}.nii.gz"  # 3D Slicer caches images by name: no two may share one
    return _series_of(review, case.id) | {
        "id": ids.make(case.id, bases, who),
        "name": name,
        "path": name,
        "ts": int(task.updated_at.timestamp()),
        "checksum": f"SHA256:{digest}",
    }


def _series_of(review: Review, case_id: str) -> dict[str, str]:
    """What OHIF opens: the series that the case came as, if from a PACS, by de-identified UIDs."""
    try:
        came = Transfers(review.catalog).of_case(case_id)
    except NotFound:
        return {}
    return {"StudyInstanceUID": came.study, "SeriesInstanceUID": came.series}


@router.head("/datastore/image", include_in_schema=False)
@router.get("/datastore/image", response_class=Response)
async def image(request: Request, review: TheReview, ids: Ids, image: ImageQuery) -> Response:
    """The CT of a case; an id from the queue suffices, without a token."""
    found = await run_in_threadpool(ids.read, image)
    who = found.holder if found.may_download else (await identity(request)).user
    await run_in_threadpool(_renew, review, found, who)
    case = await run_in_threadpool(review.catalog.case, found.case_id)
    file = await run_in_threadpool(review.files.ct, case)
    name = f"{case.id}.nii.gz"
    return await run_in_threadpool(volume_response, request, review, who, case.id, file, name)


@router.get("/datastore/")
def datastore(
    review: TheReview,
    who: SignedIn,
    output: Annotated[str, Query(pattern="^(all|stats|train)?$", max_length=8)] = "all",
) -> Any:
    """What is in the store: all cases, their number, or the finished ones."""
    if output == "stats":
        return _datastore_stats(review)
    if output == "train":
        base = review.settings.public_url or ""
        return [
            {
                "image": f"{base}/datastore/image?image={case}",
                "label": f"{base}/datastore/label?label={case}&tag={FINAL}",
            }
            for case in _finished_cases(review)
        ]
    ending = ".nii.gz"
    labelled = review.cases.labelled()
    return {
        "objects": {
            case.id: {
                "image": {"ext": ending, "info": {"name": f"{case.id}{ending}"}},
                "labels": {FINAL: {"ext": ending, "info": {}}} if case.id in labelled else {},
            }
            for case in review.catalog.cases()
        }
    }


@router.put("/datastore/")
def upload_image(who: SignedIn) -> Response:
    """Not offered: a case needs a dataset and a licence."""
    return problem(
        405, "Not offered", "images are not uploaded here", remedy="use `atlasloop import`"
    )


@router.head("/datastore/label", include_in_schema=False)
@router.get("/datastore/label", response_class=Response)
def label(
    request: Request,
    review: TheReview,
    who: SignedIn,
    ids: Ids,
    label: ImageQuery,
    tag: Annotated[str, Query(max_length=63)] = FINAL,
) -> Response:
    """The label map in force."""
    if tag != FINAL:
        raise NotFound("no label of this tag", expected=FINAL, got=tag)
    found = ids.read(label)
    _renew(review, found, who.user)
    case = review.catalog.case(found.case_id)
    file = dense_label_map(review, case)
    return volume_response(request, review, who.user, case.id, file, f"{case.id}_labels.nii.gz")


@router.put("/datastore/label", openapi_extra=MULTIPART_FILE)
async def save_label(
    request: Request,
    review: TheReview,
    who: SignedIn,
    ids: Ids,
    image: ImageQuery,
    tag: Annotated[str, Query(max_length=63)] = FINAL,
) -> dict[str, Any]:
    """Hand in a label map: each organ that differs from the label in force becomes a new version.

    An organ without a voxel stays as it is, and is listed, unless `emptied` in `params` names it.
    With the tag "final" it also ends the task that its sender holds.
    """
    found = await run_in_threadpool(ids.read, image)
    case = await run_in_threadpool(review.catalog.case, found.case_id)
    async with received_form(request) as form:
        params = _parsed_params(form.get("params"))
        submission = LabelMapSubmission(
            case=case,
            content=file_in(form, "label", plain_name=False),
            annotator=annotator_of(_acting_identity(who, params)),
            segments=_segment_names(params),
            bases=found.bases,
            final=tag in ("", FINAL),
            emptied=_emptied_names(params),
        )
        done = await review.on_volume(submit_label_map, review, submission)
    return {"image": image, "label": image, **asdict(done)}


@router.post("/infer/{model}", response_class=Response)
async def infer(
    request: Request,
    review: TheReview,
    who: SignedIn,
    ids: Ids,
    model: Name,
    image: ImageQuery = "",
    session_id: ImageQuery = "",
    output: Output = "all",
) -> Response:
    """The label map in force, as if a model had just made it: NIfTI, or what `result_extension`
    in `params` asks for (`.nrrd`, `.seg.nrrd`)."""
    if model != MODEL:
        raise NotFound("no such model", expected=MODEL, got=model)
    if session_id:
        return _no_sessions()
    found: ImageId = await run_in_threadpool(ids.read, image)
    await run_in_threadpool(_renew, review, found, who.user)
    case = await run_in_threadpool(review.catalog.case, found.case_id)
    form = ResultForm.read(await _params_of(request))
    file = await review.on_volume(dense_label_map, review, case, form)
    download = f"{case.id}_labels{form.extension}"
    if output == "image":
        return await run_in_threadpool(
            volume_response, request, review, who.user, case.id, file, download
        )
    names = {name: k for k, name in enumerate(review.settings.organs.names, start=1)}
    result = {"label_names": names, "params": {"label_names": names}}
    if output == "json":
        return Response(json.dumps(result), media_type="application/json")
    await run_in_threadpool(record_download, review, who.user, case.id, download)
    content = await run_in_threadpool(file.path.read_bytes)
    return _multipart_response(json.dumps(result), content, f"{case.id}{form.extension}")


async def _params_of(request: Request) -> dict[str, Any]:
    """`params` of the form of a request, if it brings one."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return {}
    async with received_form(request) as form:
        return _parsed_params(form.get("params"))


@router.get("/train/")
def training(who: SignedIn, check_if_running: bool = False) -> Response:
    """404: no training runs here."""
    return problem(
        404, "Not found", "nothing is trained here", remedy="models are trained by the flows"
    )


@router.put("/session/")
def create_session(who: SignedIn) -> Response:
    """Not offered: no model runs here that could segment a client's own volume."""
    return _no_sessions()


@router.get("/session/{session_id}")
def see_session(who: SignedIn, session_id: Name) -> Response:
    """404: there are no sessions, as no model runs here."""
    return problem(404, "Not found", "no such session")


@router.delete("/session/{session_id}")
def remove_session(who: SignedIn, session_id: Name) -> Response:
    """404: there are no sessions, as no model runs here."""
    return problem(404, "Not found", "no such session")


def _no_sessions() -> Response:
    return problem(
        405,
        "Not offered",
        "volumes of one's own are not segmented here",
        remedy="take a case by *Next sample*",
    )


def _renew(review: Review, image: ImageId, user: str) -> None:
    """Any call about a case renews the lease on it, of whoever was given it."""
    holder = Annotator(image.holder or user)
    review.client_queue.resume(holder, TaskFilter(case_id=image.case_id))


def _organ_of(review: Review, strategy: str) -> str | None:
    """The organ of a strategy; None for all organs."""
    if strategy == STRATEGY:
        return None
    organ = strategy.removeprefix(f"{STRATEGY}_")
    if strategy.startswith(f"{STRATEGY}_") and organ in review.settings.organs:
        return organ
    raise NotFound("no such strategy", expected=f"{STRATEGY} or {STRATEGY}_ORGAN", got=strategy)


def _acting_identity(who: Identity, params: dict[str, Any] | None) -> Identity:
    """The annotator: where nobody signs in, by the name that the client gives itself."""
    name = (params or {}).get("client_id")
    if who.method == "insecure" and isinstance(name, str) and re.fullmatch(USER_NAME, name):
        return Identity(name, who.roles, who.method)
    return who


def _parsed_params(text: object) -> dict[str, Any]:
    if not text:
        return {}
    try:
        params = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):  # also numbers of more digits than Python reads
        params = None
    if not isinstance(params, dict):
        raise InvalidInput("params cannot be read", expected="a JSON object")
    return params


def _segment_names(params: dict[str, Any]) -> list[str] | None:
    """Names of the segments, the k-th that of voxel value k; None where the client sends none."""
    info = params.get("label_info")
    if not info:
        return None
    try:
        return [str(entry["name"]) for entry in info]
    except (TypeError, KeyError):
        raise InvalidInput(
            "label_info cannot be read", expected='a list as [{"name": "liver"}]'
        ) from None


def _emptied_names(params: dict[str, Any]) -> tuple[str, ...]:
    """Names of the organs that the client says it has emptied."""
    names = params.get("emptied") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InvalidInput("emptied cannot be read", expected='a list as ["liver"]')
    return tuple(names)


def _finished_cases(review: Review) -> list[str]:
    """Ids of the cases whose revision is finished."""
    return review.queue.case_ids(TaskState.REVISED, TaskState.CONFIRMED)


def _datastore_stats(review: Review) -> dict[str, Any]:
    finished = len(_finished_cases(review))
    return {
        "total": sum(review.cases.states().values()),
        "completed": finished,
        "label_tags": {FINAL: finished},
        "label_counts": {},
        "train": [],
    }


def _multipart_response(text: str, content: bytes, name: str) -> Response:
    """A multipart/form-data response with a text part ``params`` and a file part ``image``."""
    boundary = secrets.token_hex(16)
    body = b"".join(
        (
            f"--{boundary}\r\n"
            'Content-Disposition: form-data; name="params"\r\n'
            f"Content-Type: application/json\r\n\r\n{text}\r\n"
            f"--{boundary}\r\n"
            f'Content-Disposition: form-data; name="image"; filename="{name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n".encode(),
            content,
            f"\r\n--{boundary}--\r\n".encode(),
        )
    )
    return Response(body, media_type=f"multipart/form-data; boundary={boundary}")
