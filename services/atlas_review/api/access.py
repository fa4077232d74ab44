"""Who asks, and whether he may: sessions with CSRF tokens, bearer tokens, roles."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Annotated, Final
from urllib.parse import urlsplit

from atlas_core.addresses import is_loopback
from atlas_core.review import Annotator
from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from atlas_review.auth import Identity, Role, known_roles
from atlas_review.problems import NotAllowed, NotSignedIn
from atlas_review.service import Review, review_of

SESSION_COOKIE: Final = "atlasloop_session"
CSRF_HEADER: Final = "X-CSRF-Token"

ANYBODY: Final = "anonymous"
"""Who asks an insecure service."""

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


async def identity(request: Request) -> Identity:
    """Who asks.

    Raises:
        NotSignedIn: nobody knows.
        NotAllowed: a browser that writes without its CSRF token.
    """
    review = review_of(request)
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        found = await _by_token(review, token.strip())
        if found is not None:
            return found
    elif (cookie := request.cookies.get(SESSION_COOKIE)) is not None:
        found = await _by_session(review, cookie)
        if found is not None:
            _require_csrf(request, found)
            return found
    if review.settings.insecure:
        _require_this_machine(request)
        return Identity(ANYBODY, (Role.MANAGER,), "insecure")
    raise NotSignedIn(review.ways_to_sign_in)


async def _by_token(review: Review, token: str) -> Identity | None:
    machine = review.accounts.by_token(token)
    if machine is not None:
        return machine
    sign_in = review.sign_ins.remembered("bearer", token) or await run_in_threadpool(
        review.sign_ins.find, "bearer", token
    )
    if sign_in is None:
        return None
    return Identity(sign_in.user, known_roles(sign_in.roles), "bearer")


async def _by_session(review: Review, cookie: str) -> Identity | None:
    sign_in = review.sign_ins.remembered("session", cookie) or await run_in_threadpool(
        review.sign_ins.find, "session", cookie
    )
    if sign_in is None:
        return None
    return Identity(sign_in.user, known_roles(sign_in.roles), "session", sign_in.csrf_token)


def _require_this_machine(request: Request) -> None:
    """Where nobody signs in, a page from elsewhere must not act through a browser on this machine:
    neither by a form, nor by a name that was made to mean 127.0.0.1."""
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


def with_role(role: Role) -> Callable[[Request], Awaitable[Identity]]:
    """A dependency: who asks, if he may act as `role`."""

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


SignedIn = Annotated[Identity, Depends(with_role(Role.ANNOTATOR))]
AsReader = Annotated[Identity, Depends(with_role(Role.READER))]
AsManager = Annotated[Identity, Depends(with_role(Role.MANAGER))]
TheReview = Annotated[Review, Depends(review_of)]


def annotator_of(found: Identity) -> Annotator:
    """`found` as the queue knows people."""
    return Annotator(found.user, second_reader=found.may(Role.READER))
