"""How many calls are admitted, and how many of them run at once."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Literal

from atlas_core.errors import AtlasError


class BusyError(AtlasError):
    """The maximum number of calls is running or waiting already."""


POLL_S = 0.1
"""How soon a waiting call notices that it was cancelled, in seconds."""


class Admission:
    """Admits at most `max_calls` + `max_waiting` calls, of which `max_calls` run at once.

    Args:
        on_change: called with ``"admitted"`` or ``"working"`` and +1 or −1.
    """

    def __init__(
        self,
        max_calls: int,
        max_waiting: int,
        on_change: Callable[[Literal["admitted", "working"], int], None] | None = None,
    ) -> None:
        self._max_calls = max_calls
        self._max_admitted = max_calls + max_waiting
        self._on_change = on_change or (lambda _what, _by: None)
        self._changed = threading.Condition()
        self._admitted = 0
        self._working = 0
        self._queue: deque[object] = deque()
        self._held: set[Hashable] = set()

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """One call from its first byte to its last.

        Raises:
            BusyError: too many calls are admitted already.
        """
        with self._changed:
            if self._admitted >= self._max_admitted:
                raise BusyError(
                    "the attention service is busy",
                    expected=f"at most {self._max_admitted} calls at once",
                    remedy="try again later",
                )
            self._admitted += 1
        self._on_change("admitted", 1)
        try:
            yield
        finally:
            with self._changed:
                self._admitted -= 1
            self._on_change("admitted", -1)

    @contextmanager
    def working(self, cancelled: threading.Event) -> Iterator[None]:
        """The part of a call that takes processor time and memory; first come, first served.

        Raises:
            CancelledError: the call was cancelled while it waited.
        """
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            try:
                while self._working >= self._max_calls or self._queue[0] is not ticket:
                    self._wait(cancelled)
                self._working += 1
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()
        self._on_change("working", 1)
        try:
            yield
        finally:
            with self._changed:
                self._working -= 1
                self._changed.notify_all()
            self._on_change("working", -1)

    @contextmanager
    def exclusive(self, key: Hashable, cancelled: threading.Event) -> Iterator[None]:
        """One call at a time for each `key`, so that the same work is not done twice.

        Raises:
            CancelledError: the call was cancelled while it waited.
        """
        with self._changed:
            while key in self._held:
                self._wait(cancelled)
            self._held.add(key)
        try:
            yield
        finally:
            with self._changed:
                self._held.discard(key)
                self._changed.notify_all()

    def _wait(self, cancelled: threading.Event) -> None:
        if cancelled.is_set():
            raise CancelledError
        self._changed.wait(POLL_S)
