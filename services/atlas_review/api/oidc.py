"""Sign-in by an OpenID provider: authorization code with PKCE. authlib validates the tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import httpx
from atlas_core.errors import NotFound, Unavailable
from atlas_core.review import USER_NAME
from authlib.common.errors import AuthlibBaseError
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import RedirectResponse
from joserfc.errors import JoseError
from starlette.concurrency import run_in_threadpool
from starlette.middleware.sessions import SessionMiddleware

from atlas_review.api.access import TheReview
from atlas_review.api.paths import API_PREFIX
from atlas_review.api.session import NOBODY, start_session
from atlas_review.auth import Identity, Role
from atlas_review.errors import NotAllowed
from atlas_review.service import Review, signing_secret
from atlas_review.settings import ReviewSettings

router = APIRouter(tags=["session"])

CALLBACK: Final = f"{API_PREFIX}/auth/oidc/callback"

ASYMMETRIC: Final = re.compile(r"(RS|PS|ES)(256|384|512)|EdDSA|Ed25519")
"""Signing algorithms that are accepted. Providers may also list "none" and shared-secret ones, with
which others than the provider could sign."""


def install_provider(app: FastAPI, settings: ReviewSettings) -> None:
    """Offer sign-in by the configured provider; without one, the addresses do not exist."""
    app.include_router(router, prefix=API_PREFIX)
    if settings.oidc_issuer is None:
        app.state.provider = None
        return
    # Imported only where it is used: on import it warns about the HTTP client that we share.
    from authlib.integrations.starlette_client import OAuth

    secret = settings.oidc_client_secret
    oauth = OAuth()
    app.state.provider = oauth.register(
        "oidc",
        client_id=settings.oidc_client_id,
        client_secret=secret.get_secret_value() if secret else None,
        server_metadata_url=f"{settings.oidc_issuer}/.well-known/openid-configuration",
        client_kwargs={
            "scope": settings.oidc_scopes,
            "code_challenge_method": "S256",
            "token_endpoint_auth_method": "client_secret_basic" if secret else "none",
        },
    )
    # The cookie holds state, nonce and verifier while a browser is at the provider. It must be
    # "lax", as the browser comes back from another site.
    app.add_middleware(
        SessionMiddleware,
        secret_key=signing_secret(settings).decode(),
        session_cookie="atlasloop_oidc",
        max_age=600,
        path=f"{API_PREFIX}/auth/oidc",
        same_site="lax",
        https_only=(settings.public_url or "").startswith("https://"),
    )


@router.get("/auth/oidc/login", response_class=Response)
async def login(request: Request, review: TheReview) -> Response:
    """Redirect to the provider."""
    provider = await _provider(request, review)
    try:
        answer: Response = await provider.authorize_redirect(
            request, _callback_url(request, review)
        )
    except (httpx.HTTPError, AuthlibBaseError) as error:
        raise _unreachable(error) from None
    return answer


@router.get("/auth/oidc/callback", response_class=Response)
async def callback(request: Request, review: TheReview) -> Response:
    """Return from the provider: validate its tokens and start a session."""
    provider = await _provider(request, review)
    issuer = provider.server_metadata["issuer"]
    options = {
        "iss": {"essential": True, "values": [issuer]},
        "aud": {"essential": True, "values": [review.settings.oidc_client_id]},
    }
    try:
        token = await provider.authorize_access_token(request, claims_options=options)
    except (AuthlibBaseError, JoseError, ValueError) as error:
        raise NotAllowed(
            "the sign-in did not succeed", got=type(error).__name__, remedy="sign in again"
        ) from None
    except httpx.HTTPError as error:
        raise _unreachable(error) from None
    if not token.get("userinfo"):
        raise NotAllowed("the provider sent no identity", remedy="ask for the scope openid")
    try:
        who = identity_of(token["userinfo"], review.settings)
    except NotAllowed:
        refused = {"by": "oidc", "sub": str(token["userinfo"].get("sub"))[:100]}
        await run_in_threadpool(
            review.audit.add, datetime.now(UTC), NOBODY, "failed sign-in", refused
        )
        raise
    answer = RedirectResponse("/", status_code=303)
    await run_in_threadpool(_start_session, request, answer, review, who)
    return answer


def identity_of(claims: Mapping[str, Any], settings: ReviewSettings) -> Identity:
    """The user with these claims, and the roles that the settings map them to.

    Raises:
        NotAllowed: no claim maps to a role, and there is no default role.
    """
    name = str(claims.get(settings.oidc_name_claim) or "")
    if not re.fullmatch(USER_NAME, name):
        name = str(claims["sub"])
    if not re.fullmatch(USER_NAME, name):
        raise NotAllowed("the provider names no user that can be kept", got=name[:20])
    values = claims.get(settings.oidc_roles_claim) or ()
    values = [values] if isinstance(values, str) else list(values)
    roles: list[Role] = [
        settings.oidc_roles[value] for value in values if value in settings.oidc_roles
    ]
    if not roles and settings.oidc_default_role is not None:
        roles = [settings.oidc_default_role]
    if not roles:
        raise NotAllowed(
            "your account has no role here",
            expected=f"one of {', '.join(sorted(settings.oidc_roles)) or 'the mapped groups'}",
            remedy="ask a manager",
        )
    return Identity(name, tuple(sorted(set(roles))), "session")


def _start_session(request: Request, answer: Response, review: Review, who: Identity) -> None:
    start_session(request, answer, review, who)
    review.audit.add(datetime.now(UTC), who.user, "sign in", {"by": "oidc"})


async def _provider(request: Request, review: Review) -> Any:
    """authlib's client of the provider, its metadata checked and its algorithms restricted."""
    provider = request.app.state.provider
    if provider is None:
        raise NotFound("no OpenID provider is configured")
    try:
        metadata = await provider.load_server_metadata()
    except httpx.HTTPError as error:
        raise _unreachable(error) from None
    if str(metadata.get("issuer", "")).rstrip("/") != review.settings.oidc_issuer:
        raise Unavailable(
            "the provider calls itself otherwise",
            expected=review.settings.oidc_issuer,
            got=metadata.get("issuer"),
        )
    offered = metadata.get("id_token_signing_alg_values_supported") or ["RS256"]
    metadata["id_token_signing_alg_values_supported"] = [
        name for name in offered if ASYMMETRIC.fullmatch(name)
    ]
    return provider


def _callback_url(request: Request, review: Review) -> str:
    base = review.settings.public_url or str(request.base_url).rstrip("/")
    return f"{base}{CALLBACK}"


def _unreachable(error: Exception) -> Unavailable:
    return Unavailable("the OpenID provider does not answer", got=type(error).__name__)
