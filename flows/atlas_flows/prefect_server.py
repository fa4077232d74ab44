"""Prefect's server as the stack of one machine runs it: it answers to its own host names only.

A page of another site whose name is made to resolve to 127.0.0.1 would otherwise count as the
same origin.
"""

from __future__ import annotations

from typing import Final

from prefect.server.api.server import create_app as create_prefect
from starlette.middleware.trustedhost import TrustedHostMiddleware

OWN_HOSTS: Final = ("127.0.0.1", "localhost")


def create_app() -> TrustedHostMiddleware:
    """The application that uvicorn serves; settings come from the environment, as Prefect's do.

    The check stands around Prefect's application, not in it: automations call that one inside the
    process, by a host name that is nobody's.
    """
    return TrustedHostMiddleware(create_prefect(), allowed_hosts=list(OWN_HOSTS))
