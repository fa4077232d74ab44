"""Host names that a server may answer to."""

from __future__ import annotations

import socket

import pytest
from atlas_core.addresses import Endpoint, HostNames, endpoints, is_own_host
from pydantic import TypeAdapter, ValidationError

ADDRESSES = ("127.0.0.1", "127.0.0.1:18011", "10.2.3.4:18011", "[::1]", "[fd00::1]:18011")


@pytest.mark.parametrize("header", [*ADDRESSES, "localhost", "LOCALHOST:1"])
def test_addresses_and_localhost_are_everybodys(header: str) -> None:
    assert is_own_host(header)


@pytest.mark.parametrize(
    "header",
    [
        "", "evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example",
        "[evil]", "[::1", "::1", "127.0.0.1:80:80", "127.0.0.1@evil.example", "2130706433",
    ],
)  # fmt: skip
def test_other_names_are_not(header: str) -> None:
    assert not is_own_host(header)
    assert not is_own_host(header, "attention,metrics.example.org")


@pytest.mark.parametrize("header", ["attention:18011", "Metrics.Example.org", "127.0.0.1"])
def test_names_of_the_settings_are_its_own(header: str) -> None:
    assert is_own_host(header, "attention, metrics.example.org")


@pytest.mark.parametrize("names", ["*", "a:80", "http://a", "a b"])
def test_malformed_names_are_refused(names: str) -> None:
    with pytest.raises(ValidationError, match="host name"):
        TypeAdapter(HostNames).validate_python(names)


def test_a_name_stands_for_every_address_of_one_family(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        "triton": [
            (socket.AF_INET6, "fd00::1"),
            (socket.AF_INET, "10.0.0.2"),
            (socket.AF_INET, "10.0.0.1"),
        ],
        "six": [(socket.AF_INET6, "fd00::1")],
    }

    def resolve(host: str, port: int, **_: object) -> list[object]:
        if host not in known:
            raise socket.gaierror(host)
        return [(family, 1, 6, "", (address, port)) for family, address in known[host]]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    both = (Endpoint("10.0.0.1:8001", "triton"), Endpoint("10.0.0.2:8001", "triton"))
    assert endpoints("triton:8001") == both
    assert endpoints("six:8001,triton:8001") == (*both, Endpoint("[fd00::1]:8001", "six"))
    # A name that is not to be found just now keeps what it stood for.
    assert endpoints("nobody:8001") == ()
    kept = Endpoint("10.0.0.9:8001", "nobody")
    assert endpoints("nobody:8001", known=(*both, kept)) == (kept,)
