"""Who is calling, and what they may do: sessions with CSRF tokens, bearer tokens, roles."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Annotated, Final
from urllib.parse import urlsplit

from atlas_core.addresses import is_loopback
from atlas_core.review import Annotator, SignIn
from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from atlas_review.auth import Identity, Role, roles_named
from atlas_review.errors import NotAllowed, NotSignedIn
from atlas_review.service import Review

SESSION_COOKIE: Final = "atlasloop_session"
CSRF_HEADER: Final = "X-CSRF-Token"

ANONYMOUS: Final = "anonymous"
"""Every caller of an insecure service."""

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


def review_of(request: Request) -> Review:
    """The service that answers `request`."""
    review: Review = request.app.state.review
    return review


async def identity(request: Request) -> Identity:
    """The caller.

    Raises:
        NotSignedIn: no valid session or token came with the request.
        NotAllowed: a browser writes without its CSRF token.
    """
    review = review_of(request)
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        found = await _identity_by_token(review, token.strip())
        if found is not None:
            return found
    elif (cookie := request.cookies.get(SESSION_COOKIE)) is not None:
        found = await _identity_by_session(review, cookie)
        if found is not None:
            _require_csrf(request, found)
            return found
    if review.settings.insecure:
        _require_this_machine(request)
        return Identity(ANONYMOUS, (Role.MANAGER,), "insecure")
    raise NotSignedIn(review.sign_in_methods)


def sign_in_secret(request: Request, who: Identity) -> str | None:
    """What `identity` knew `who` by, where that can be the secret of a sign-in."""
    if who.method == "bearer":
        return request.headers.get("authorization", "").partition(" ")[2].strip()
    return request.cookies.get(SESSION_COOKIE) if who.method == "session" else None


async def _identity_by_token(review: Review, token: str) -> Identity | None:
    machine = review.accounts.by_token(token)
    if machine is not None:
        return machine
    sign_in = await _sign_in(review, "bearer", token)
    if sign_in is None:
        return None
    return Identity(sign_in.user, roles_named(sign_in.roles), "bearer")


async def _identity_by_session(review: Review, cookie: str) -> Identity | None:
    sign_in = await _sign_in(review, "session", cookie)
    if sign_in is None:
        return None
    return Identity(sign_in.user, roles_named(sign_in.roles), "session", sign_in.csrf_token)


async def _sign_in(review: Review, kind: str, secret: str) -> SignIn | None:
    """Only a sign-in that is not in the cache costs a thread and a query."""
    return review.sign_ins.cached(kind, secret) or await run_in_threadpool(
        review.sign_ins.find, kind, secret
    )


def _require_this_machine(request: Request) -> None:
    """Where nobody signs in, refuse what another site sends through a browser on this machine: by a
    form, or by a host name that resolves to 127.0.0.1 (DNS rebinding)."""
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    try:
        name = urlsplit(f"//{host}").hostname or ""
        ours = origin is None or urlsplit(origin).netloc == host
    except ValueError:
        name, ours = "", False
    if not (ours and is_loopback(f"{name}:80")):
        raise NotAllowed(
            "the request comes from another site",
            expected="an address of this machine, as http://127.0.0.1:18030",
            got=origin or host,
            remedy="open the page by that address",
        )


def _require_csrf(request: Request, found: Identity) -> None:
    if request.method in SAFE_METHODS:
        return
    given = request.headers.get(CSRF_HEADER, "")
    if not hmac.compare_digest(given.encode(), found.csrf_token.encode()):
        raise NotAllowed(
            "the request does not come from our page",
            expected=f"the session's token in {CSRF_HEADER}",
            remedy="load the page again",
        )


def requires(role: Role) -> Callable[[Request], Awaitable[Identity]]:
    """A dependency: the caller, who must have `role` or a higher one."""

    async def dependency(request: Request) -> Identity:
        found = await identity(request)
        if not found.may(role):
            raise NotAllowed(
                "your account may not do this",
                expected=f"role {role.value}",
                got=", ".join(found.roles) or "no role",
                remedy="ask a manager",
            )
        return found

    return dependency


SignedIn = Annotated[Identity, Depends(requires(Role.ANNOTATOR))]
AsReader = Annotated[Identity, Depends(requires(Role.READER))]
AsManager = Annotated[Identity, Depends(requires(Role.MANAGER))]
TheReview = Annotated[Review, Depends(review_of)]


def annotator_of(found: Identity) -> Annotator:
    """The caller as the revision queue sees them."""
    return Annotator(found.user, second_reader=found.may(Role.READER))
