"""Is the attention service, the review service, the Prefect server, the flows process at work?"""

from __future__ import annotations

import json

from atlas_core.errors import Unavailable

from atlas_embedded.loopback import TIMEOUT_S, fetch


def attention_answers(address: str) -> str:
    """Asks the standard gRPC health service; SERVING, NOT_SERVING, ….

    Raises:
        Unavailable: it does not answer.
    """
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S
            )
        except grpc.RpcError as error:
            raise Unavailable(
                "the attention service does not answer", got=error.code().name
            ) from None
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def attention_serves(address: str) -> str:
    """As `attention_answers`, and content with SERVING only: every model answers it.

    Raises:
        Unavailable: it does not answer, or does not serve.
    """
    status = attention_answers(address)
    if status != "SERVING":
        raise Unavailable("the attention service does not serve", got=status)
    return "serving"


def review_serves(port: int) -> str:
    """Asks the review service whether its database and store are there.

    Raises:
        Unavailable: it does not answer, or not well.
    """
    if json.loads(fetch(port, "/readyz")) != {"status": "ok"}:
        raise Unavailable("the review service is not ready")
    return "ready"


def prefect_answers(port: int) -> str:
    """Asks the Prefect API for its health.

    Raises:
        Unavailable: it does not answer, or not well.
    """
    if json.loads(fetch(port, "/api/health")) is not True:
        raise Unavailable("the Prefect server is not healthy")
    return "healthy"


def flows_served(port: int, auth: str) -> str:
    """Asks Prefect which deployments a living process serves.

    Args:
        auth: ``user:password`` of the Prefect server.

    Raises:
        Unavailable: none, or the Prefect server does not answer.
    """
    deployments = json.loads(fetch(port, "/api/deployments/filter", "{}", auth))
    names = sorted({d["name"] for d in deployments if d.get("status") == "READY"})
    if not names:
        raise Unavailable("no flow is served", got=f"{len(deployments)} deployments, none ready")
    return f"serves {', '.join(names)}"
