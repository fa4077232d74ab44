"""Ports for the servers of tests."""

from __future__ import annotations

import random
import socket

LOWEST, HIGHEST = 10_000, 32_000
"""Below those that the system gives to outgoing connections: a server that a test stops and starts
again must find its port free still."""

_given: set[int] = set()
_random = random.SystemRandom()  # several test processes must not draw the same row of numbers


def free_port() -> int:
    """A port that nobody listens on now, and that was not given before in this process."""
    while True:
        port = _random.randrange(LOWEST, HIGHEST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in _given:
            _given.add(port)
            return port
