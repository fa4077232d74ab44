"""Which client a request comes from when a proxy is in between."""

from __future__ import annotations

import ipaddress
import logging
from typing import Any, Final, cast

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

FORWARDED_FOR: Final = b"x-forwarded-for"

MAX_WARNINGS: Final = 16
"""Untrusted proxies that the log names at most: made-up headers must not fill it."""

_log = logging.getLogger(__name__)


class ClientAddressMiddleware:
    """Takes the client's address and scheme from the headers of trusted proxies.

    What any other proxy says is only a claim: see `claimed_network`.

    Args:
        trusted: addresses and networks of proxies, comma-separated.
    """

    def __init__(self, app: ASGIApp, trusted: str) -> None:
        proxied = ProxyHeadersMiddleware(cast(Any, app), trusted)  # uvicorn types ASGI differently
        self._app = cast(ASGIApp, proxied)
        self._trusted = proxied.trusted_hosts
        self._warned: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            peer = scope["client"][0] if scope.get("client") else ""
            forwarded = [value for name, value in scope["headers"] if name == FORWARDED_FOR]
            if forwarded and peer not in self._trusted:
                # The proxy itself saw the last one; those before it can be made up.
                claimed = forwarded[-1].decode("latin-1").rpartition(",")[2].strip()
                scope.setdefault("state", {})["claimed_network"] = network_of(claimed)
                self._warn(peer)
        await self._app(scope, receive, send)

    def _warn(self, peer: str) -> None:
        if peer in self._warned or len(self._warned) >= MAX_WARNINGS:
            return
        self._warned.add(peer)
        _log.warning(
            "X-Forwarded-For from a proxy that is not trusted: if it is yours, name it in "
            "ATLAS_REVIEW_TRUSTED_PROXIES",
            extra={"fields": {"proxy": peer}},
        )


def network_of(address: str) -> str:
    """What one client has at will: an IPv4 address, or the 64 bits that IPv6 gives every line;
    "unknown" for what is no address.

    >>> network_of("203.0.113.5"), network_of("2001:db8:1:2:3::4")
    ('203.0.113.5', '2001:db8:1:2::/64')
    """
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((int(found), 64), strict=False))


def client_network(request: Request) -> str:
    """The network of the client of a trusted proxy, else of whoever has connected."""
    return network_of(request.client.host) if request.client else "unknown"


def claimed_network(request: Request) -> str | None:
    """That of the client that an untrusted proxy claims to forward; None without such a proxy."""
    claimed: str | None = getattr(request.state, "claimed_network", None)
    return claimed
