"""Errors as HTTP responses: problem details (RFC 9457). One table maps errors to statuses."""

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
    printable,
)
from atlas_core.review import KeptAsProposal, OpenElsewhere, StaleBase
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from atlas_review.api.label_view import label_view
from atlas_review.errors import NotAllowed, NotSignedIn, TooManyAttempts

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

PROBLEM_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": title, "content": _PROBLEM_CONTENT}
    for status, title in (
        (400, "Malformed"),
        (401, "Not signed in"),
        (403, "Not allowed"),
        (404, "Not found, or not yours"),
        (405, "Not offered"),
        (409, "Conflict"),
        (413, "Over a limit"),
        (422, "Not acceptable as it is"),
        (429, "Too many attempts"),
        (503, "Not available now"),
    )
}
"""Responses that every operation may give, for OpenAPI."""

STATUS: tuple[tuple[type[AtlasError], int, str], ...] = (
    (NotFound, 404, "Not found"),
    (StaleBase, 409, "Made from an older version"),
    (KeptAsProposal, 409, "Kept as a proposal"),
    (OpenElsewhere, 409, "Open elsewhere"),
    (Conflict, 409, "Conflict"),
    (LimitExceeded, 413, "Over a limit"),
    (InvalidInput, 422, "Not acceptable as it is"),
    (Unavailable, 503, "Not available now"),
)
"""The first match counts."""


def problem(
    status: int,
    title: str,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    **more: Any,
) -> JSONResponse:
    """One problem; members of `more` that are None are left out."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    body |= {name: value for name, value in more.items() if value is not None}
    return JSONResponse(body, status, dict(headers or {}), media_type=PROBLEM_TYPE)


def problem_of(error: AtlasError) -> JSONResponse:
    """The response to an error of ours."""
    if isinstance(error, NotSignedIn):
        challenge = {"WWW-Authenticate": "Bearer"}
        return problem(
            401, "Not signed in", str(error), headers=challenge, auth=error.methods, **_parts(error)
        )
    if isinstance(error, NotAllowed):
        return problem(403, "Not allowed", str(error), **_parts(error))
    if isinstance(error, TooManyAttempts):
        wait = {"Retry-After": str(error.retry_after_s)}
        return problem(429, "Too many attempts", str(error), headers=wait, **_parts(error))
    for kind, status, title in STATUS:
        if isinstance(error, kind):
            return problem(status, title, str(error), **_parts(error), **_versions(error))
    _log.error("%s", error)
    return problem(500, "Fault of the service", "see its log")


def _parts(error: AtlasError) -> dict[str, Any]:
    return {
        "case": error.case,
        "what": printable(error.what),
        "expected": None if error.expected is None else printable(str(error.expected)),
        "got": None if error.got is None else printable(str(error.got)),
        "remedy": error.remedy,
    }


def _versions(error: AtlasError) -> dict[str, Any]:
    if not isinstance(error, KeptAsProposal):
        return {}
    versions = {"submitted": label_view(error.submitted).model_dump(mode="json")}
    if isinstance(error, StaleBase) and error.current is not None:
        versions["current"] = label_view(error.current).model_dump(mode="json")
    return versions


def answer_with_problems(app: FastAPI) -> None:
    """Make `app` answer every error with a problem."""

    @app.exception_handler(AtlasError)
    async def atlas_error(request: Request, error: AtlasError) -> JSONResponse:
        return problem_of(error)

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

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> JSONResponse:
        # Nobody reads it; without it, every broken connection would be a traceback in the log.
        return problem(400, "Malformed", "the request ended before its body was complete")

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> JSONResponse:
        # The traceback is in the server's log; the response must not carry it.
        return problem(500, "Fault of the service", "see its log")
