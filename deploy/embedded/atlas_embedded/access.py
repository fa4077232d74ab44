"""What lets the parts of this stack talk to each other, and keeps everybody else out.

Triton runs whatever code a model brings, and Prefect whatever a deployment names; so neither may
listen to a web page, nor to another user of this machine. Triton takes only clients that show a
certificate of this stack (mutual TLS), Prefect only those that know a password. Both are made at
the first start, lie in owner-only files of the home folder, and never stand in a process list.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import secrets
from pathlib import Path
from typing import Final

from atlas_core.atomic_writes import new_folder, write_synced
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from atlas_embedded.settings import (
    HOST,
    TLS_AUTHORITY,
    TLS_CLIENT,
    TLS_SERVER,
    EmbeddedSettings,
)

PREFECT_USER: Final = "atlasloop"

_EVER: Final = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
"""RFC 5280, 4.1.2.5: no well-defined end. The certificates live as long as their folder."""


def make_access(settings: EmbeddedSettings) -> None:
    """The keys, certificates and password of this stack; kept where they are."""
    folder = settings.access_folder
    if folder.exists():
        return
    with contextlib.suppress(FileExistsError), new_folder(folder, mode=0o700) as draft:
        authority = _key_pair(draft, TLS_AUTHORITY, None)
        for name in (TLS_SERVER, TLS_CLIENT):
            _key_pair(draft, name, authority)
        (draft / f"{TLS_AUTHORITY}.key").unlink()  # nobody needs to sign with it ever again
        auth = f"{PREFECT_USER}:{secrets.token_urlsafe(24)}\n"
        _write_private(draft / settings.prefect_auth_file.name, auth.encode())
    # Of two that start at once one wins, and the other uses what the winner made.


def prefect_auth(settings: EmbeddedSettings) -> str:
    """``user:password`` of this stack's Prefect server, made if it is not there yet."""
    make_access(settings)
    return settings.prefect_auth_file.read_text(encoding="ascii").strip()


_Signer = tuple[x509.Name, ec.EllipticCurvePrivateKey]


def _key_pair(folder: Path, name: str, signer: _Signer | None) -> _Signer:
    """A key and its certificate, signed by `signer`; None: by itself, an authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Atlas Loop {name}")])
    issuer, issuer_key = signer or (subject, key)
    names = [x509.IPAddress(ipaddress.ip_address(HOST)), x509.DNSName("localhost")]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # Clocks that are set back after the first start must not lock the stack out.
        .not_valid_before(datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))
        .not_valid_after(_EVER)
        .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _write_private(folder / f"{name}.key", private)
    write_synced(folder / f"{name}.crt", certificate.public_bytes(serialization.Encoding.PEM))
    return subject, key


def _write_private(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    write_synced(path, content)
