"""Prefect's REST API, asked as its UI does."""

from __future__ import annotations

from typing import Any

import httpx
from atlas_embedded.access import prefect_auth
from atlas_embedded.settings import EmbeddedSettings


def as_operator(settings: EmbeddedSettings) -> tuple[str, str]:
    """User and password of the stack's Prefect server."""
    user, _, password = prefect_auth(settings).partition(":")
    return user, password


def ask_prefect(settings: EmbeddedSettings, path: str, body: object = None) -> Any:
    """The answer to a GET, or to a POST where there is a `body`.

    A server on SQLite that finds it locked answers 503; asked again, as by Prefect's own clients.

    Raises:
        httpx.HTTPStatusError: refused.
    """
    with httpx.Client(
        base_url=settings.prefect_api_url,
        auth=as_operator(settings),
        trust_env=False,
        timeout=None,
    ) as client:
        while True:
            answer = client.get(path) if body is None else client.post(path, json=body)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                return answer.raise_for_status().json()
