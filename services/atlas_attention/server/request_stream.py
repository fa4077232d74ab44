"""A client's request stream, read with time limits."""

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
"""How soon a cancelled call stops waiting for its client, in seconds."""


class RequestStream(Iterator[RequestT], Generic[RequestT]):
    """The messages of `requests`, each within `idle_timeout_s`, all within `total_timeout_s`.

    gRPC's own iterator blocks without limit, so a thread reads it. That thread holds one message at
    most; gRPC's flow control slows the client down. Use as a context manager.

    Raises:
        TooSlowError: from `__next__`: a limit has passed.
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
            target=self._read, args=(iter(requests),), name="request-stream", daemon=True
        )
        self._reader.start()

    def __next__(self) -> RequestT:
        began = time.monotonic()
        timeout = min(self._idle_s, self._left_s)
        while True:
            left = began + timeout - time.monotonic()
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
        # The thread itself may stay blocked in gRPC's iterator until the call has ended.
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
            # gRPC raises a bare Exception when the call has ended.
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
