"""A client's request stream, read with patience that ends."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError
from typing import Generic, Self, TypeVar

from atlas_attention.server.status import TooSlowError

RequestT = TypeVar("RequestT")

POLL_S = 0.1
"""How soon a cancelled call stops waiting for its client."""


class Intake(Iterator[RequestT], Generic[RequestT]):
    """Messages of `requests`, each within `idle_timeout_s`, all within `total_timeout_s`.

    gRPC's own iterator waits without end, so a thread waits for it. That thread holds one message
    at most; the client is slowed down by gRPC's flow control. Use as a context manager.

    Raises:
        TooSlowError: from `__next__`: a bound has passed.
        CancelledError: from `__next__`: the call has ended.
    """

    def __init__(
        self,
        requests: Iterable[RequestT],
        *,
        idle_timeout_s: float,
        total_timeout_s: float,
        cancelled: threading.Event,
    ) -> None:
        self._idle_s = idle_timeout_s
        self._total_s = total_timeout_s
        self._left_s = total_timeout_s
        self._cancelled = cancelled
        self._closed = threading.Event()
        self._messages: queue.Queue[RequestT | None] = queue.Queue(maxsize=1)
        self._reader = threading.Thread(
            target=self._read, args=(iter(requests),), name="intake", daemon=True
        )
        self._reader.start()

    def __next__(self) -> RequestT:
        began = time.monotonic()
        patience = min(self._idle_s, self._left_s)
        while True:
            left = began + patience - time.monotonic()
            if self._cancelled.is_set():
                raise CancelledError
            if left <= 0:
                raise self._too_slow()
            try:
                message = self._messages.get(timeout=min(left, POLL_S))
                break
            except queue.Empty:
                continue
        # Only the wait for the client counts, not what is done with its messages.
        self._left_s -= time.monotonic() - began
        if message is None:
            if self._cancelled.is_set():
                raise CancelledError
            raise StopIteration
        return message

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # The reader itself may sit in gRPC's iterator until the call has ended.
        self._closed.set()

    def _too_slow(self) -> TooSlowError:
        if self._left_s <= self._idle_s:
            return TooSlowError("the upload took too long", expected=f"{self._total_s:g} s in all")
        expected = f"a message every {self._idle_s:g} s"
        return TooSlowError("the client fell silent", expected=expected)

    def _read(self, requests: Iterator[RequestT]) -> None:
        try:
            for message in requests:
                if not self._put(message):
                    return
        except Exception:
            # gRPC raises without a type of its own when the call has ended; the event says so too.
            if not self._cancelled.is_set() and not self._closed.is_set():
                self._cancelled.set()
        self._put(None)

    def _put(self, message: RequestT | None) -> bool:
        while not self._closed.is_set():
            try:
                self._messages.put(message, timeout=POLL_S)
            except queue.Full:
                continue
            return True
        return False
