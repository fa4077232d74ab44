"""A bound on what a request may bring, whatever it says of itself."""

from __future__ import annotations

from typing import Final

from atlas_core.errors import LimitExceeded
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from atlas_review.problems import of_error

SMALL_BODY: Final = 1 << 20
"""Of requests that bring no volume: JSON, forms with a name and a password."""

VOLUME_PATHS: Final = ("/labels", "/draft", "/datastore/label", "/infer/")


class BodyLimit:
    """Answers 413 to a request that is too large, at the latest when it becomes so.

    Args:
        most: bytes of a request that brings a volume.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        brings_volume = any(part in scope["path"] for part in VOLUME_PATHS)
        most = self._most if brings_volume else min(SMALL_BODY, self._most)
        claimed = dict(scope["headers"]).get(b"content-length", b"0")
        if claimed.isdigit() and int(claimed) > most:
            await of_error(_too_large(most))(scope, receive, send)
            return
        came = 0

        async def counted() -> Message:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            if came > most:
                raise _too_large(most)
            return message

        await self._app(scope, counted, send)


def _too_large(most: int) -> LimitExceeded:
    return LimitExceeded(
        "the request is too large",
        expected=f"at most {most} bytes",
        remedy="compress the mask (.nii.gz), or raise ATLAS_REVIEW_MAX_UPLOAD_BYTES",
    )
