"""Is the service in this container at work? Exit status 0 or 1, and one line that says why.

healthcheck.py grpc HOST:PORT       the standard gRPC health service says SERVING
healthcheck.py http URL             an answer below 400
healthcheck.py tcp HOST:PORT        somebody listens there
"""

from __future__ import annotations

import socket
import sys
import urllib.request

TIMEOUT_S = 5.0


def grpc_status(address: str) -> str:
    """Status of the whole server at `address`."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S
            )
        except grpc.RpcError as error:
            return str(error.code().name)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def http_status(url: str) -> str:
    """ "OK", or how the request for `url` failed."""
    # No proxy: what is asked is in this container or beside it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=TIMEOUT_S):
            return "OK"
    except OSError as error:
        return str(error)


def tcp_status(address: str) -> str:
    """ "OK", or why nobody can be reached at `address`."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=TIMEOUT_S):
            return "OK"
    except OSError as error:
        return str(error)


STATUS = {"grpc": grpc_status, "http": http_status, "tcp": tcp_status}


def main(arguments: list[str]) -> int:
    """Exit status."""
    if len(arguments) != 2 or arguments[0] not in STATUS:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    kind, where = arguments
    status = STATUS[kind](where)
    sys.stdout.write(f"{where}: {status}\n")
    return 0 if status in ("SERVING", "OK") else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
