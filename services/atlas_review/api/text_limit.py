"""Bounds on the address of a request, before anything reads it."""

from __future__ import annotations

import re
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from atlas_review.api.problems import problem

MAX_NAME: Final = 255
"""Bytes of one part of a path, as in a file system."""

MAX_QUERY: Final = 8192

NO_CONTROL: Final = r"^[^\x00-\x08\x0b\x0c\x0e-\x1f]*$"
"""Text without control characters but tab and line ends; PostgreSQL refuses NUL."""

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_ESCAPED_CONTROL: Final = re.compile(rb"%[01][0-9a-fA-F]|%7[fF]")


class TextLimit:
    """Answers 400 to a path or a query that is too long, or that holds control characters."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wrong = _wrong(scope["path"], scope["query_string"]) if scope["type"] == "http" else None
        if wrong is None:
            await self._app(scope, receive, send)
        else:
            await problem(400, "Malformed", wrong)(scope, receive, send)


def _wrong(path: str, query: bytes) -> str | None:
    if _CONTROL.search(path) or _ESCAPED_CONTROL.search(query):
        return "the address holds control characters"
    if len(query) > MAX_QUERY or len(path) > MAX_QUERY:
        return f"the address is too long (expected at most {MAX_QUERY} bytes)"
    if any(len(part) > MAX_NAME // 4 and len(part.encode()) > MAX_NAME for part in path.split("/")):
        return f"a name in the address is too long (expected at most {MAX_NAME} bytes)"
    return None
