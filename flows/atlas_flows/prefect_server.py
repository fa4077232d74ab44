"""Prefect's server as the stack of one machine runs it: it answers to its own host names only.

A page of another site whose name is made to resolve to 127.0.0.1 would otherwise count as the
same origin.
"""

from __future__ import annotations

from typing import Final

from fastapi import FastAPI
from prefect.server.api.server import create_app as create_prefect
from starlette.middleware.trustedhost import TrustedHostMiddleware

OWN_HOSTS: Final = ("127.0.0.1", "localhost")


def create_app() -> FastAPI:
    """The application that uvicorn serves; settings come from the environment, as Prefect's do."""
    app = create_prefect()
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(OWN_HOSTS))
    return app
