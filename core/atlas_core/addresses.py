"""Network addresses as settings write them: ``HOST:PORT``."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator


def _address(text: str) -> str:
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):(\d{1,5})", text)
    if match is None or not 1 <= int(match[2]) <= 65535:
        raise ValueError(f"address {text!r}: expected HOST:PORT")
    return text


def _host_names(text: str) -> str:
    for name in _names(text):
        if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
            raise ValueError(f"host name {name!r}: expected as attention,metrics.example.org")
    return text


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip().lower() for name in text.split(",") if name.strip())


def _addresses(text: str) -> str:
    return ",".join(_address(one.strip()) for one in text.split(","))


Address = Annotated[str, AfterValidator(_address)]
Addresses = Annotated[str, AfterValidator(_addresses)]
"""One or more, comma-separated; a name stands for every address that it resolves to."""
HostNames = Annotated[str, AfterValidator(_host_names)]
"""Names of hosts without their ports, comma-separated; may be empty."""


def host_and_port(address: str) -> tuple[str, int]:
    """``"[::1]:18010"`` → ("::1", 18010)."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


@dataclass(frozen=True, order=True)
class Endpoint:
    """Where one process of a service listens.

    Attributes:
        address: IP:PORT.
        name: host as the setting has it, which a certificate is made out to.
    """

    address: str
    name: str


def endpoints(addresses: str, known: Collection[Endpoint] = ()) -> tuple[Endpoint, ...]:
    """Every process that `addresses` (see `Addresses`) name, sorted.

    Args:
        known: as of the last time; a name that cannot be resolved just now keeps those.

    >>> endpoints("127.0.0.1:8001,127.0.0.1:8002")[1].address
    '127.0.0.1:8002'
    """
    found: set[Endpoint] = set()
    for one in addresses.split(","):
        host, port = host_and_port(one)
        try:
            answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except socket.gaierror:
            found |= {endpoint for endpoint in known if endpoint.name == host}
            continue
        # One family: with both, every process would count twice.
        families = {answer[0] for answer in answers}
        family = socket.AF_INET if socket.AF_INET in families else socket.AF_INET6
        for answer in answers:
            if answer[0] == family:
                ip = str(answer[4][0])
                shown = f"[{ip}]" if family == socket.AF_INET6 else ip
                found.add(Endpoint(f"{shown}:{port}", host))
    return tuple(sorted(found))


def is_loopback(address: str) -> bool:
    """Whether only this machine can connect to `address`."""
    host, _ = host_and_port(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_own_host(header: str, names: str = "") -> bool:
    """Whether a server may answer a request with this ``Host``.

    A web page's own name can be made to resolve to this machine (DNS rebinding); page and server
    are then of one origin for the browser, and only ``Host`` tells. An IP address or ``localhost``
    is no name that somebody else could have taken.

    Args:
        header: value of ``Host``, with or without a port.
        names: other names of this server; see `HostNames`.

    >>> is_own_host("10.1.2.3:18011"), is_own_host("evil.example:18011")
    (True, False)
    """
    match = re.fullmatch(r"\[([0-9a-fA-F:.]+)\](:\d*)?|([^:\[\]]+)(:\d*)?", header.strip())
    if match is None:
        return False
    host = (match[1] or match[3]).lower()
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host in _names(names)
    return True
