"""Prometheus metrics over HTTP, to scrapers and to no web page."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from threading import Lock, Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from atlas_core.addresses import host_and_port, is_own_host
from atlas_core.errors import ConfigurationError

MAX_CONNECTIONS = 16
"""At once; a scrape takes milliseconds. Of more, the one open longest gives way, so that clients
that say nothing cannot shut a scraper out."""

Wsgi = Callable[..., Iterable[bytes]]


class MetricsServer:
    """Serves the metrics of `registry` in threads of its own until it is closed.

    Args:
        address: ``HOST:PORT`` to listen at.
        hosts: names by which it may be asked for, comma-separated, beside every IP address and
            ``localhost``; see `is_own_host`.
        env_prefix: of the settings that messages name.

    Raises:
        ConfigurationError: the address cannot be listened at.
    """

    def __init__(
        self, registry: CollectorRegistry, address: str, hosts: str = "", *, env_prefix: str = ""
    ) -> None:
        host, port = host_and_port(address)
        application = _only_for_own_hosts(make_wsgi_app(registry), hosts, env_prefix)
        kind = _Server6 if ":" in host else _Server
        try:
            self._server = make_server(host, port, application, kind, _SilentHandler)
        except OSError as error:
            raise ConfigurationError(
                f"metrics cannot be served on {address}",
                got=error.strerror,
                remedy=f"free the port, or set {env_prefix}METRICS_LISTEN",
            ) from None
        self._thread = Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _only_for_own_hosts(application: Wsgi, hosts: str, env_prefix: str) -> Wsgi:
    refusal = f"Not served under this host name; see {env_prefix}METRICS_HOSTS.\n".encode()

    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if is_own_host(environ.get("HTTP_HOST", ""), hosts):
            return application(environ, start_response)
        start_response("421 Misdirected Request", [("Content-Type", "text/plain")])
        return [refusal]

    return guarded


class _SilentHandler(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """Scrapes are not worth a line."""


class _Server(ThreadingWSGIServer):
    """At most `MAX_CONNECTIONS` at once."""

    def __init__(self, *arguments: Any) -> None:
        self._lock = Lock()
        self._open: deque[socket.socket] = deque()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            if len(self._open) >= MAX_CONNECTIONS:
                oldest = self._open.popleft()
                _end(oldest)
            self._open.append(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            if request in self._open:
                self._open.remove(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left, or had to give way, is no error."""


class _Server6(_Server):
    address_family = socket.AF_INET6


def _end(connection: socket.socket) -> None:
    with suppress(OSError):  # it has ended already
        connection.shutdown(socket.SHUT_RDWR)
