"""How this service connects to Triton."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tritonclient.grpc as triton
from atlas_core.addresses import Endpoint
from atlas_core.tls import TlsFiles, channel_options, tritonclient_arguments

from atlas_attention.fusion import DeviceName

SharedMemoryKind = Literal["auto", "cuda", "system", "none"]

CONTROL_TIMEOUT_S = 5.0
"""For calls that the server answers from memory: statistics, configuration, registering a
region."""

CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # The default waits up to two minutes before it looks for a restarted server again.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Triton's regions are this machine's: a proxy from the environment is never meant.
    ("grpc.enable_http_proxy", 0),
]


@dataclass(frozen=True)
class TritonOptions:
    """How to reach the model servers.

    Attributes:
        address: host:port of gRPC endpoints, comma-separated; see `atlas_core.addresses.Addresses`.
        shared_memory: ``cuda``, ``system``, ``none``, or ``auto``: the first of those, cuda only on
            a GPU, that a server can map.
        windows_in_flight: most windows with one server's models at once, each with all of them.
        inference_timeout_s: deadline of one inference, and of the wait for free buffers.
        device: where answers are wanted; by ``cuda`` shared memory they never leave the GPU.
        tls: this end of mutual TLS; None: the connection is neither encrypted nor proved.
    """

    address: str
    shared_memory: SharedMemoryKind = "auto"
    windows_in_flight: int = 4
    inference_timeout_s: float = 60.0
    device: DeviceName = "cpu"
    tls: TlsFiles | None = None


def open_client(endpoint: Endpoint, tls: TlsFiles | None = None) -> triton.InferenceServerClient:
    """A client of the server at `endpoint`; it connects at its first call.

    Args:
        tls: this end of mutual TLS; None: the connection is neither encrypted nor authenticated.
    """
    return triton.InferenceServerClient(
        endpoint.address,
        channel_args=[*CHANNEL_OPTIONS, *channel_options(tls, endpoint.name)],
        **tritonclient_arguments(tls),
    )
