"""Files of a case as responses: with their checksum as ETag, in ranges, cached by browsers."""

from __future__ import annotations

from typing import Final

from fastapi import Request, Response
from fastapi.responses import FileResponse

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
