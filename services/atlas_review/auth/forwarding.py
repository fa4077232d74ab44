"""Where a request comes from, when a proxy is in between."""

from __future__ import annotations

import logging
from typing import Any, Final, cast

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

FORWARDED_FOR: Final = b"x-forwarded-for"

TOLD: Final = 16
"""Proxies that the log names; whoever makes up headers must not fill it."""

_log = logging.getLogger(__name__)


class ClientAddress:
    """Takes address and scheme of the client from what trusted proxies say.

    What another one says is a claim only: see `claimed_address`.

    Args:
        trusted: addresses and networks of proxies, comma-separated.
    """

    def __init__(self, app: ASGIApp, trusted: str) -> None:
        believing = ProxyHeadersMiddleware(cast(Any, app), trusted)  # has its own types of ASGI
        self._app = cast(ASGIApp, believing)
        self._trusted = believing.trusted_hosts
        self._told: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            peer = scope["client"][0] if scope.get("client") else ""
            said = [value for name, value in scope["headers"] if name == FORWARDED_FOR]
            if said and peer not in self._trusted:
                # The last one is whom the proxy itself saw; those before it can be made up.
                claimed = said[-1].decode("latin-1").rpartition(",")[2].strip()
                scope.setdefault("state", {})["claimed_address"] = claimed
                self._tell(peer)
        await self._app(scope, receive, send)

    def _tell(self, peer: str) -> None:
        if peer in self._told or len(self._told) >= TOLD:
            return
        self._told.add(peer)
        _log.warning(
            "X-Forwarded-For from a proxy that is not trusted: if it is yours, name it in "
            "ATLAS_REVIEW_TRUSTED_PROXIES",
            extra={"fields": {"proxy": peer}},
        )


def client_address(request: Request) -> str:
    """Who asks: the client of a trusted proxy, else whoever has connected."""
    return request.client.host if request.client else "unknown"


def claimed_address(request: Request) -> str | None:
    """For whom a proxy that is not trusted says it asks; None: no such proxy is in between."""
    claimed: str | None = getattr(request.state, "claimed_address", None)
    return claimed
