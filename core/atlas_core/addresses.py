"""Network addresses as settings write them: ``HOST:PORT``."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated

from pydantic import AfterValidator


def _address(text: str) -> str:
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):(\d{1,5})", text)
    if match is None or not 1 <= int(match[2]) <= 65535:
        raise ValueError(f"address {text!r}: expected HOST:PORT")
    return text


Address = Annotated[str, AfterValidator(_address)]


def host_and_port(address: str) -> tuple[str, int]:
    """``"[::1]:18010"`` → ("::1", 18010)."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def is_loopback(address: str) -> bool:
    """Whether only this machine can connect to `address`."""
    host, _ = host_and_port(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
