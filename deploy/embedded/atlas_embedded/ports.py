"""Is a port free, and if not, who holds it?"""

from __future__ import annotations

import socket
import time

import psutil
from atlas_core.errors import ConfigurationError

from atlas_embedded.settings import CONFIG_FILE, ENV_PREFIX, HOST, EmbeddedSettings

RELEASE_S = 5.0
"""How long a port may stay taken after the process that held it has ended: the system closes the
sockets of a killed process a moment after it is gone from the list."""

LOOK_S = 0.05


def require_free(settings: EmbeddedSettings, field: str) -> None:
    """Refuses the port in field `field` of `settings` when somebody else listens on it.

    Raises:
        ConfigurationError: names the port, who holds it where that can be told, and the setting.
    """
    port: int = getattr(settings, field)
    deadline = time.monotonic() + RELEASE_S
    while not _is_free(port):
        who = _listener(port)
        if who is None and time.monotonic() < deadline:
            time.sleep(LOOK_S)
            continue
        raise ConfigurationError(
            f"port {port} is taken",
            expected="a free port",
            got=who or "a process that cannot be told from here",
            remedy=f"end that process, or move all ports: `atlasloop --port-base N up`, or "
            f"port_base in {settings.home / CONFIG_FILE}; this one alone: "
            f"{ENV_PREFIX}{field.upper()}, or {field} there",
        )


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the servers do: a connection that is still closing down does not hold the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _listener(port: int) -> str | None:
    """Who listens on `port`, in words; None: nobody that can be told from here."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return "a process of another user"
    for connection in connections:
        listens = connection.status == psutil.CONN_LISTEN
        if listens and connection.laddr and connection.laddr.port == port and connection.pid:
            try:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
            except psutil.Error:
                return None  # it ended, or is not ours to look at
    return None
