"""Signing in and out, and the current session."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from atlas_review.api.access import SESSION_COOKIE, TheReview, identity
from atlas_review.auth import AttemptKey, Identity, Role, claimed_address, client_address
from atlas_review.errors import NotSignedIn
from atlas_review.service import Review

router = APIRouter(tags=["session"])

CLIENTS_OF_A_PROXY: Final = 10
"""Behind an untrusted proxy, all addresses together may fail this many times as often as one."""


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
def sign_in(
    request: Request, response: Response, review: TheReview, credentials: Credentials
) -> SessionView:
    """Sign in with a local account; sets the session cookie."""
    who = check_password(request, review, credentials.username, credentials.password)
    return session_view(review, start_session(request, response, review, who))


@router.delete("/session", status_code=204)
def sign_out(
    request: Request, review: TheReview, who: Annotated[Identity, Depends(identity)]
) -> Response:
    """Sign out; the session ends on every replica."""
    cookie = request.cookies.get(SESSION_COOKIE)
    if cookie:
        review.sign_ins.end(cookie)
        review.audit.add(datetime.now(UTC), who.user, "sign out")
    # CTs in the browser's cache are not for whoever sits here next; drafts, in its storage, stay.
    response = Response(status_code=204, headers={"Clear-Site-Data": '"cache"'})
    response.delete_cookie(SESSION_COOKIE)
    return response


def check_password(request: Request, review: Review, name: str, password: str) -> Identity:
    """The user with this name and password.

    Raises:
        TooManyAttempts: the name or the address has failed too often.
        NotSignedIn: there is none.
    """
    with review.sign_in_attempts.attempt(_limits(request, review, name)):
        user = review.accounts.by_password(name, password)
        if user is None:
            raise NotSignedIn(review.sign_in_methods)
    review.audit.add(datetime.now(UTC), user.name, "sign in", {"by": "password"})
    return Identity(user.name, user.roles, "session")


def _limits(request: Request, review: Review, name: str) -> dict[AttemptKey, int]:
    """How often the name and the address may fail."""
    allowed = review.settings.login_attempts
    address, claimed = client_address(request), claimed_address(request)
    if claimed is None:
        return {("name", name): allowed, ("address", address): allowed}
    # Behind a proxy that is not trusted, one guesser must not lock out everybody else; nor may one
    # who makes up forwarded addresses guess without a limit.
    return {
        ("name", name): allowed,
        ("address", f"{claimed} by {address}"): allowed,
        ("address", address): allowed * CLIENTS_OF_A_PROXY,
    }


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
