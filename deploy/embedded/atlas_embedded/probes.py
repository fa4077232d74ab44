"""Is the attention service, the Prefect server, the flows process at work?"""

from __future__ import annotations

import http.client
import json
from typing import Any

from atlas_core.errors import Unavailable

from atlas_embedded.settings import HOST

_TIMEOUT_S = 10.0
"""A busy server on a busy machine answers late, not never."""


def attention_serves(address: str) -> str:
    """Asks the standard gRPC health service.

    Raises:
        Unavailable: it does not answer, or does not serve.
    """
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S
            )
        except grpc.RpcError as error:
            raise Unavailable(
                "the attention service does not answer", got=error.code().name
            ) from None
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    if status != "SERVING":
        raise Unavailable("the attention service does not serve", got=status)
    return "serving"


def prefect_answers(port: int) -> str:
    """Asks the Prefect API for its health.

    Raises:
        Unavailable: it does not answer, or not well.
    """
    if _ask(port, "GET", "/api/health") is not True:
        raise Unavailable("the Prefect server is not healthy")
    return "healthy"


def flows_served(port: int) -> str:
    """Asks Prefect which deployments a living process serves.

    Raises:
        Unavailable: none, or the Prefect server does not answer.
    """
    deployments = _ask(port, "POST", "/api/deployments/filter", {"limit": 50})
    names = sorted({d["name"] for d in deployments if d.get("status") == "READY"})
    if not names:
        raise Unavailable("no flow is served", got=f"{len(deployments)} deployments, none ready")
    return f"serves {', '.join(names)}"


def _ask(port: int, method: str, path: str, body: object = None) -> Any:
    # http.client, not urllib: a proxy from the environment must not come between.
    connection = http.client.HTTPConnection(HOST, port, timeout=_TIMEOUT_S)
    try:
        connection.request(
            method,
            path,
            body=None if body is None else json.dumps(body),
            headers={"Content-Type": "application/json"},
        )
        answer = connection.getresponse()
        text = answer.read()
        if answer.status >= 300:
            raise Unavailable("the Prefect server does not answer well", got=answer.status)
        return json.loads(text)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unavailable("the Prefect server does not answer", got=type(error).__name__) from None
    finally:
        connection.close()
