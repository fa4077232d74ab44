"""The metrics server over real sockets: who is answered, and who cannot keep it busy."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest
from atlas_core.errors import ConfigurationError
from atlas_core.metrics_server import MAX_CONNECTIONS, MetricsServer
from ports import free_port
from prometheus_client import CollectorRegistry, Counter


@pytest.fixture
def port() -> Iterator[int]:
    registry = CollectorRegistry()
    Counter("answers", "Counted", registry=registry).inc(42)
    port = free_port()
    server = MetricsServer(registry, f"127.0.0.1:{port}", "attention")
    yield port
    server.close()


def scrape(port: int, host: str) -> httpx.Response:
    url = f"http://127.0.0.1:{port}/metrics"
    return httpx.get(url, headers={"Host": host}, trust_env=False, timeout=60)


@pytest.mark.parametrize("host", ["10.2.3.4:18011", "localhost", "attention:18011"])
def test_scrapers_are_answered(port: int, host: str) -> None:
    answer = scrape(port, host)
    assert answer.status_code == 200
    assert "answers_total 42.0" in answer.text


@pytest.mark.parametrize("host", ["evil.example", f"127.0.0.1.evil.example:{1}", ""])
def test_foreign_names_are_told_nothing(port: int, host: str) -> None:
    answer = scrape(port, host)
    assert answer.status_code == 421
    assert "42.0" not in answer.text


def test_silent_clients_shut_no_scraper_out(port: int) -> None:
    with ExitStack() as held:
        silent = [
            held.enter_context(socket.create_connection(("127.0.0.1", port)))
            for _ in range(MAX_CONNECTIONS)
        ]
        assert scrape(port, "localhost").status_code == 200
        # The one that was silent longest had to give way.
        silent[0].settimeout(60)
        assert silent[0].recv(1) == b""


def test_taken_port_is_a_clear_error(port: int) -> None:
    with pytest.raises(ConfigurationError, match=f"127.0.0.1:{port}.*METRICS_LISTEN"):
        MetricsServer(CollectorRegistry(), f"127.0.0.1:{port}")
