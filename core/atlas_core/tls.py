"""Files by which one end of a connection proves who it is, and knows the other end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from atlas_core.frozen_model import FrozenModel


class TlsFiles(FrozenModel):
    """One end of mutual TLS, as PEM files.

    Attributes:
        authority: certificate of the authority that signed the other end's certificate.
        certificate: of this end.
        key: its private key; readable by its owner alone.
    """

    authority: Path
    certificate: Path
    key: Path


def tritonclient_arguments(tls: TlsFiles | None) -> dict[str, Any]:
    """How tritonclient is told to encrypt, to know the server, and to prove who it is; None: not
    at all."""
    if tls is None:
        return {}
    return {
        "ssl": True,
        "root_certificates": str(tls.authority),
        "certificate_chain": str(tls.certificate),
        "private_key": str(tls.key),
    }


def channel_options(tls: TlsFiles | None, name: str) -> list[tuple[str, str]]:
    """What a gRPC channel to an IP address is told, so that the certificate is held against the
    `name` that was resolved to it."""
    return [] if tls is None else [("grpc.ssl_target_name_override", name)]
