"""Volumes as answers: named by content, in ranges, kept by browsers for as long as they like."""

from __future__ import annotations

from typing import Final

from fastapi import Request, Response
from fastapi.responses import FileResponse

from atlas_review.volumes import ServedFile

VOLUME_TYPE: Final = "application/gzip"
FOR_EVER: Final = "private, max-age=31536000, immutable"
ASK_AGAIN: Final = "private, no-cache"
"""A browser may keep it, and asks every time whether it has changed."""


def file_answer(
    request: Request, file: ServedFile, name: str, media_type: str = VOLUME_TYPE
) -> Response:
    """`file` as a download called `name`; 304 if the client has it, 206 for a range."""
    etag = f'"{file.sha256}"'
    named = request.query_params.get("v") == file.sha256
    headers = {"ETag": etag, "Cache-Control": FOR_EVER if named else ASK_AGAIN}
    known = request.headers.get("if-none-match", "")
    asked = [part.strip().removeprefix("W/") for part in known.split(",")]
    if etag in asked or asked == ["*"]:
        return Response(status_code=304, headers=headers)
    return FileResponse(file.path, media_type=media_type, filename=name, headers=headers)
