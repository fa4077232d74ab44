"""How this service connects to Triton."""

from __future__ import annotations

import tritonclient.grpc as triton
from atlas_core.tls import TlsFiles, tritonclient_arguments

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


def open_client(address: str, tls: TlsFiles | None = None) -> triton.InferenceServerClient:
    """A client of the server at `address` (host:port); it connects at its first call.

    Args:
        tls: this end of mutual TLS; None: the connection is neither encrypted nor authenticated.
    """
    return triton.InferenceServerClient(
        address, channel_args=list(CHANNEL_OPTIONS), **tritonclient_arguments(tls)
    )
