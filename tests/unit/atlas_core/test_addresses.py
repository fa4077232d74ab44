"""Host names that a server may answer to."""

from __future__ import annotations

import pytest
from atlas_core.addresses import HostNames, is_own_host
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
