"""Configuration of the attention service: from the environment, and refused where it is unsafe."""

from __future__ import annotations

import pytest
from atlas_attention.settings import AttentionSettings
from atlas_core.addresses import host_and_port, is_loopback
from pydantic import ValidationError


def test_every_field_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATLAS_ATTENTION_LISTEN", "127.0.0.1:18305")
    monkeypatch.setenv("ATLAS_ATTENTION_SHARED_MEMORY", "none")
    monkeypatch.setenv("ATLAS_ATTENTION_WINDOWS_IN_FLIGHT", "7")
    settings = AttentionSettings()
    assert settings.listen == "127.0.0.1:18305"
    assert (settings.shared_memory, settings.windows_in_flight) == ("none", 7)


def test_cuda_shared_memory_needs_a_gpu() -> None:
    assert AttentionSettings().device == "cpu"
    assert AttentionSettings(device="cuda", shared_memory="cuda").shared_memory == "cuda"
    with pytest.raises(ValidationError, match="ATLAS_ATTENTION_DEVICE"):
        AttentionSettings(shared_memory="cuda")


def test_every_field_has_a_description() -> None:
    unsaid = [
        name for name, field in AttentionSettings.model_fields.items() if not field.description
    ]
    assert unsaid == ["log_level"]


@pytest.mark.parametrize("address", ["0.0.0.0:18010", "[::]:18010", "10.0.0.5:18010", "ct-host:1"])
@pytest.mark.parametrize("field", ["listen", "metrics_listen"])
def test_other_machines_need_explicit_permission(field: str, address: str) -> None:
    with pytest.raises(ValidationError, match="ALLOW_REMOTE"):
        AttentionSettings(**{field: address})
    told = AttentionSettings(**{field: address}, allow_remote=True)
    assert getattr(told, field) == address


@pytest.mark.parametrize("address", ["", "localhost", "127.0.0.1:", ":18010", "a:99999", "a b:1"])
def test_malformed_addresses_are_refused(address: str) -> None:
    with pytest.raises(ValidationError, match="HOST:PORT"):
        AttentionSettings(listen=address)


def test_addresses() -> None:
    assert host_and_port("[::1]:18010") == ("::1", 18010)
    assert is_loopback("[::1]:1")
    assert is_loopback("localhost:1")
    assert not is_loopback("[fe80::1]:1")
