"""Files of a case as responses: with their checksum as ETag, in ranges, cached by browsers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from fastapi import Request, Response
from fastapi.responses import FileResponse

from atlas_review.service import Review
from atlas_review.volumes import CaseFile

VOLUME_TYPE: Final = "application/gzip"
CACHE_FOREVER: Final = "private, max-age=31536000, immutable"
REVALIDATE: Final = "private, no-cache"
"""A browser may keep the file, and asks every time whether it has changed."""


def file_response(
    request: Request, file: CaseFile, name: str, media_type: str = VOLUME_TYPE
) -> Response:
    """`file` as a download called `name`; 304 if the client has it, 206 for a range.

    A request that names the checksum (``?v=…``) may be cached for ever: its content cannot change.
    """
    etag = f'"{file.sha256}"'
    names_content = request.query_params.get("v") == file.sha256
    headers = {"ETag": etag, "Cache-Control": CACHE_FOREVER if names_content else REVALIDATE}
    held_by_client = [
        part.strip().removeprefix("W/")
        for part in request.headers.get("if-none-match", "").split(",")
    ]
    if etag in held_by_client or held_by_client == ["*"]:
        return Response(status_code=304, headers=headers)
    return FileResponse(file.path, media_type=media_type, filename=name, headers=headers)


def volume_response(
    request: Request, review: Review, who: str, case_id: str, file: CaseFile, name: str
) -> Response:
    """`file_response` of a volume of a case; that `who` got it is put on record first."""
    answer = file_response(request, file, name)
    if answer.status_code != 304 and request.method != "HEAD":
        record_download(review, who, case_id, name)
    return answer


def record_download(review: Review, who: str, case_id: str, name: str) -> None:
    """Put on record that `who` gets a volume of a case."""
    review.audit.add(datetime.now(UTC), who, "download", {"file": name}, case_id=case_id)
