"""Prefect's server as every stack of ours runs it: it answers to its own host names only.

A page of another site whose name is made to resolve to 127.0.0.1 would otherwise count as the
same origin.
"""

from __future__ import annotations

from typing import Final

from prefect.server.api.server import create_app as create_prefect
from starlette.middleware.trustedhost import TrustedHostMiddleware

from atlas_flows.settings import FlowSettings

LOOPBACK_HOSTS: Final = ("127.0.0.1", "localhost")


def create_app() -> TrustedHostMiddleware:
    """The application that uvicorn serves; settings come from the environment, as Prefect's do.

    The check stands around Prefect's application, not in it: automations call that one inside the
    process, by a host name that is nobody's.
    """
    others = [name.strip() for name in FlowSettings().prefect_hosts.split(",") if name.strip()]
    return TrustedHostMiddleware(create_prefect(), allowed_hosts=[*LOOPBACK_HOSTS, *others])
