"""The web page: its built files, and the headers that restrict what browsers do with them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from atlas_core.errors import NotFound
from fastapi import FastAPI, Response
from fastapi.responses import FileResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

STATIC: Final = Path(__file__).parent / "static"

PAGE_POLICY: Final = "; ".join(
    (
        # Nothing but what follows: no plug-ins, frames, fonts, workers or WebAssembly.
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        # Text never becomes markup or script, not even through a bug of ours.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)

HEADERS: Final = (
    (b"content-security-policy", PAGE_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
)


class SecurityHeaders:
    """Adds `HEADERS` to every response; responses that say nothing about caching are not cached."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                added = [pair for pair in HEADERS if pair[0] not in given]
                if b"cache-control" not in given:
                    added.append((b"cache-control", b"no-store"))
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        await self._app(scope, receive, with_headers)


def install_page(app: FastAPI, folder: Path = STATIC) -> None:
    """Serve the page at ``/`` and its files under ``/assets/``."""

    @app.get("/", include_in_schema=False)
    def index() -> Response:
        return _file(folder / "index.html", "no-cache")

    @app.get("/favicon.svg", include_in_schema=False)
    def icon() -> Response:
        return _file(folder / "favicon.svg", "public, max-age=86400")

    @app.get("/assets/{name:path}", include_in_schema=False)
    def asset(name: str) -> Response:
        root = (folder / "assets").resolve()
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            raise NotFound("no such file")
        # File names contain a hash of the content: what is there never changes.
        return _file(path, "public, max-age=31536000, immutable")


def _file(path: Path, cache_control: str) -> Response:
    if not path.is_file():
        raise NotFound("no such page", remedy="the page is built by `make web`")
    return FileResponse(path, headers={"Cache-Control": cache_control})
