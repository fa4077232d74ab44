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


class _Places:
    """At most `most` holders at once, first come, first served; all under the lock of `changed`."""

    def __init__(self, most: int, changed: threading.Condition) -> None:
        self._most = most
        self._changed = changed
        self._held = 0
        self._queue: deque[object] = deque()

    @contextmanager
    def held(self, cancelled: threading.Event) -> Iterator[None]:
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            try:
                while self._held >= self._most or self._queue[0] is not ticket:
                    _wait(self._changed, cancelled)
                self._held += 1
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._held -= 1
                self._changed.notify_all()


class Admission:
    """Admits at most `max_calls` + `max_waiting` calls, of which `max_calls` run at once.

    A call that receives a client's data has a place of its own kind meanwhile, so that a slow
    client keeps nobody from working.

    Args:
        max_uploads: calls that receive data at once.
        on_change: called with ``"admitted"``, ``"receiving"`` or ``"working"`` and +1 or −1.
    """

    def __init__(
        self,
        max_calls: int,
        max_waiting: int,
        on_change: Callable[[Literal["admitted", "receiving", "working"], int], None] | None = None,
        *,
        max_uploads: int = 8,
    ) -> None:
        self._max_admitted = max_calls + max_waiting
        self._on_change = on_change or (lambda _what, _by: None)
        self._changed = threading.Condition()
        self._admitted = 0
        self._uploads = _Places(max_uploads, self._changed)
        self._calls = _Places(max_calls, self._changed)
        self._held: set[Hashable] = set()

    @property
    def full(self) -> bool:
        """Whether the next call would be refused."""
        return self._admitted >= self._max_admitted

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """One call from its first byte to its last.

        Raises:
            BusyError: too many calls are admitted already.
        """
        with self._changed:
            if self.full:
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
    def receiving(self, cancelled: threading.Event) -> Iterator[None]:
        """The part of a call that waits for the client's data and holds it; first come, first
        served.

        Raises:
            CancelledError: the call was cancelled while it waited.
        """
        with self._uploads.held(cancelled), self._counted("receiving"):
            yield

    @contextmanager
    def working(self, cancelled: threading.Event) -> Iterator[None]:
        """The part of a call that takes processor time and memory; first come, first served.

        Raises:
            CancelledError: the call was cancelled while it waited.
        """
        with self._calls.held(cancelled), self._counted("working"):
            yield

    @contextmanager
    def exclusive(self, key: Hashable, cancelled: threading.Event) -> Iterator[None]:
        """One call at a time for each `key`, so that the same work is not done twice.

        Raises:
            CancelledError: the call was cancelled while it waited.
        """
        with self._changed:
            while key in self._held:
                _wait(self._changed, cancelled)
            self._held.add(key)
        try:
            yield
        finally:
            with self._changed:
                self._held.discard(key)
                self._changed.notify_all()

    @contextmanager
    def _counted(self, what: Literal["receiving", "working"]) -> Iterator[None]:
        self._on_change(what, 1)
        try:
            yield
        finally:
            self._on_change(what, -1)


def _wait(changed: threading.Condition, cancelled: threading.Event) -> None:
    if cancelled.is_set():
        raise CancelledError
    changed.wait(POLL_S)
