"""Signing in and out, and the current session."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import anyio
from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from atlas_review.api.access import SESSION_COOKIE, TheReview, identity, sign_in_secret
from atlas_review.auth import Identity, Role, claimed_network, client_network
from atlas_review.errors import NotAllowed, NotSignedIn
from atlas_review.service import Review

router = APIRouter(tags=["session"])

CLIENTS_OF_A_PROXY: Final = 10
"""Behind an untrusted proxy, all addresses together may fail this many times as often as one."""


NOBODY: Final = "(unknown)"
"""In the audit log, of a failed sign-in under a name that nobody has; no user can be called so."""


class Credentials(BaseModel):
    """Name and password of a local account."""

    model_config = ConfigDict(extra="forbid")

    username: str = Field(min_length=1, max_length=100)
    password: str = Field(min_length=1, max_length=1000)


class SessionView(BaseModel):
    """Who is signed in."""

    user: str
    roles: list[Role]
    csrf_token: str = Field(description="To be sent as X-CSRF-Token with every request but GET.")
    auth: dict[str, bool] = Field(
        description="Sign-in method (local, oidc) → whether it is offered."
    )
    insecure: bool


@router.get("/session")
async def who_am_i(review: TheReview, who: Annotated[Identity, Depends(identity)]) -> SessionView:
    """The current session; 401 without one."""
    return session_view(review, who)


@router.post("/session")
async def sign_in(
    request: Request, response: Response, review: TheReview, credentials: Credentials
) -> SessionView:
    """Sign in with a local account; sets the session cookie."""
    who = await check_password(request, review, credentials)
    session = await run_in_threadpool(start_session, request, response, review, who)
    return session_view(review, session)


@router.delete("/session", status_code=204)
def sign_out(
    request: Request, review: TheReview, who: Annotated[Identity, Depends(identity)]
) -> Response:
    """Sign out, of the page or of a bearer token; it ends on every replica."""
    secret = sign_in_secret(request, who)
    if secret is None or not review.sign_ins.end(secret):
        raise NotAllowed(
            "this is no sign-in that could end",
            expected="a session, or a token of POST /auth/token",
            got=who.method,
            remedy="a token of the account file ends by `python -m atlas_review remove NAME`",
        )
    review.audit.add(datetime.now(UTC), who.user, "sign out", {"by": who.method})
    # CTs in the browser's cache are not for whoever sits here next; drafts, in its storage, stay.
    response = Response(status_code=204, headers={"Clear-Site-Data": '"cache"'})
    response.delete_cookie(SESSION_COOKIE)
    return response


async def check_password(request: Request, review: Review, given: Credentials) -> Identity:
    """The user with this name and password. Both outcomes are put on record.

    Hashing, slow on purpose, has threads of its own: however many guess, all else is answered.

    Raises:
        TooManyAttempts: the network has failed too often, or too many sign-ins are pending.
        NotSignedIn: there is none.
    """
    with review.sign_in_attempts.attempt(_limits(request, review)):
        user = await anyio.to_thread.run_sync(
            review.accounts.by_password,
            given.username,
            given.password,
            limiter=review.password_threads,
        )
        await run_in_threadpool(_record, request, review, given.username, user is not None)
        if user is None:
            raise NotSignedIn(review.sign_in_methods)
    return Identity(user.name, user.roles, "session")


def _record(request: Request, review: Review, name: str, signed_in: bool) -> None:
    if signed_in:
        review.audit.add(datetime.now(UTC), name, "sign in", {"by": "password"})
        return
    # A name that nobody has may be a password that was typed into the wrong field.
    known = name in {user.name for user in review.accounts.content().users}
    detail = {"by": "password", "from": claimed_network(request) or client_network(request)}
    review.audit.add(datetime.now(UTC), name if known else NOBODY, "failed sign-in", detail)


def _limits(request: Request, review: Review) -> dict[str, int]:
    """How often the network may fail."""
    allowed = review.settings.login_attempts
    network, claimed = client_network(request), claimed_network(request)
    if claimed is None:
        return {network: allowed}
    # Behind a proxy that is not trusted, one guesser must not lock out everybody else; nor may one
    # who makes up forwarded addresses guess without a limit.
    return {f"{claimed} by {network}": allowed, network: allowed * CLIENTS_OF_A_PROXY}


def start_session(request: Request, response: Response, review: Review, who: Identity) -> Identity:
    """Start a session of `who` in the browser; returns them with the session's CSRF token."""
    lifetime = timedelta(hours=review.settings.session_hours)
    secret, sign_in = review.sign_ins.start("session", who.user, who.roles, lifetime)
    response.set_cookie(
        SESSION_COOKIE,
        secret,
        max_age=int(lifetime.total_seconds()),
        httponly=True,
        samesite="strict",
        secure=over_tls(request, review),
    )
    return Identity(who.user, who.roles, "session", sign_in.csrf_token)


def over_tls(request: Request, review: Review) -> bool:
    """Whether browsers reach the service by https."""
    address = review.settings.public_url or str(request.base_url)
    return address.startswith("https://")


def session_view(review: Review, who: Identity) -> SessionView:
    return SessionView(
        user=who.user,
        roles=list(who.roles),
        csrf_token=who.csrf_token,
        auth=review.sign_in_methods,
        insecure=review.settings.insecure,
    )
