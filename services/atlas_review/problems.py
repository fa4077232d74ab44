"""Errors as answers: RFC 9457 problems. One table says which error has which status."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from atlas_core.errors import (
    AtlasError,
    Conflict,
    InvalidInput,
    LimitExceeded,
    NotFound,
    Unavailable,
)
from atlas_core.review import StaleBase
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from atlas_review.label_view import label_view

PROBLEM_TYPE = "application/problem+json"

_log = logging.getLogger(__name__)

_PROBLEM_CONTENT = {
    PROBLEM_TYPE: {
        "schema": {
            "type": "object",
            "required": ["type", "title", "status", "detail"],
            "properties": {
                "type": {"type": "string"},
                "title": {"type": "string"},
                "status": {"type": "integer"},
                "detail": {"type": "string", "description": "What, expected, got, and the remedy."},
            },
        }
    }
}

RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": title, "content": _PROBLEM_CONTENT}
    for status, title in (
        (400, "Malformed"),
        (401, "Not signed in"),
        (403, "Not allowed"),
        (404, "Not found, or not yours"),
        (405, "Not offered"),
        (409, "Conflict"),
        (413, "Too large"),
        (422, "Not acceptable as it is"),
        (429, "Too many attempts"),
        (503, "Not available now"),
    )
}
"""Of every operation, for its description."""

STATUS: tuple[tuple[type[AtlasError], int, str], ...] = (
    (NotFound, 404, "Not found"),
    (StaleBase, 409, "Made from an older version"),
    (Conflict, 409, "Conflict"),
    (LimitExceeded, 413, "Too large"),
    (InvalidInput, 422, "Not acceptable as it is"),
    (Unavailable, 503, "Not available now"),
)
"""The first that fits counts."""


class NotSignedIn(AtlasError):
    """Who asks has not said who he is.

    Attributes:
        ways: how one can sign in here.
    """

    def __init__(self, ways: Mapping[str, bool]) -> None:
        self.ways = dict(ways)
        super().__init__("sign in first", remedy="sign in, or send a bearer token")


class NotAllowed(AtlasError):
    """Who asks may not do this."""


class TooManyAttempts(AtlasError):
    """Sign-in failed too often.

    Attributes:
        retry_after_s: when to try again.
    """

    def __init__(self, retry_after_s: int) -> None:
        self.retry_after_s = retry_after_s
        super().__init__("too many failed sign-ins", remedy=f"wait {retry_after_s} seconds")


def problem(
    status: int,
    title: str,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    **more: Any,
) -> JSONResponse:
    """One problem; of `more`, what is None is left out."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    body |= {name: value for name, value in more.items() if value is not None}
    return JSONResponse(body, status, dict(headers or {}), media_type=PROBLEM_TYPE)


def of_error(error: AtlasError) -> JSONResponse:
    """The answer to an error of ours."""
    if isinstance(error, NotSignedIn):
        challenge = {"WWW-Authenticate": "Bearer"}
        return problem(401, "Not signed in", str(error), headers=challenge, auth=error.ways)
    if isinstance(error, NotAllowed):
        return problem(403, "Not allowed", str(error), **_parts(error))
    if isinstance(error, TooManyAttempts):
        wait = {"Retry-After": str(error.retry_after_s)}
        return problem(429, "Too many attempts", str(error), headers=wait)
    for kind, status, title in STATUS:
        if isinstance(error, kind):
            return problem(status, title, str(error), **_parts(error), **_versions(error))
    _log.error("%s", error)
    return problem(500, "Fault of the service", "see its log")


def _parts(error: AtlasError) -> dict[str, Any]:
    return {
        "case": error.case,
        "expected": None if error.expected is None else str(error.expected),
        "got": None if error.got is None else str(error.got),
        "remedy": error.remedy,
    }


def _versions(error: AtlasError) -> dict[str, Any]:
    if not isinstance(error, StaleBase):
        return {}
    current = error.current
    return {
        "current": None if current is None else label_view(current).model_dump(mode="json"),
        "submitted": label_view(error.submitted).model_dump(mode="json"),
    }


def install(app: FastAPI) -> None:
    """Let `app` answer every error with a problem."""

    @app.exception_handler(AtlasError)
    async def atlas_error(request: Request, error: AtlasError) -> JSONResponse:
        return of_error(error)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return problem(422, "Malformed request", f"{where}: {first['msg']}", expected=first["msg"])

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        return problem(
            error.status_code, str(error.detail), str(error.detail), headers=error.headers
        )

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> JSONResponse:
        # The log of the server has the traceback; the answer must not.
        return problem(500, "Fault of the service", "see its log")
