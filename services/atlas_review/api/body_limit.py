"""A bound on the size of a request body, whatever its Content-Length claims."""

from __future__ import annotations

from typing import Final

from atlas_core.errors import LimitExceeded
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from atlas_review.api.problems import problem_of

SMALL_BODY: Final = 1 << 20
"""Bytes of a request that brings no volume: JSON, forms with a name and a password."""

VOLUME_PATHS: Final = ("/labels", "/draft", "/datastore/label", "/infer/")

REFUSED_PATHS: Final = ("/session/", "/datastore/")
"""Volumes that MONAI Label clients send and nobody takes. Their routes say so without reading a
byte, and what still comes is dropped by the connection."""


class BodyLimit:
    """Answers 413 to a request that is too large, at the latest when that many bytes have arrived.

    Args:
        max_bytes: of a request that brings a volume.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in REFUSED_PATHS:
            await self._app(scope, receive, send)
            return
        brings_volume = any(part in scope["path"] for part in VOLUME_PATHS)
        limit = self._max_bytes if brings_volume else min(SMALL_BODY, self._max_bytes)
        claimed = dict(scope["headers"]).get(b"content-length", b"0")
        if claimed.isdigit() and int(claimed) > limit:
            await problem_of(_too_large(limit))(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise _too_large(limit)
            return message

        await self._app(scope, counted, send)


def _too_large(limit: int) -> LimitExceeded:
    return LimitExceeded(
        "the request is too large",
        expected=f"at most {limit} bytes",
        remedy="compress the mask (.nii.gz), or raise ATLAS_REVIEW_MAX_UPLOAD_BYTES",
    )
