"""A client's request stream, read with time limits."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from typing import Generic, Self, TypeVar

from atlas_attention.server.status import TooSlowError

RequestT = TypeVar("RequestT")

POLL_S = 0.1
"""How soon a cancelled call stops waiting for its client, in seconds."""


class Allowance:
    """How much longer a client may keep the service waiting.

    A leaky bucket: waiting empties it, and every byte that has passed fills it again, up to
    `most_s`. So a client may pause for `most_s`, but cannot trickle for longer.

    Args:
        most_s: longest pause.
        bytes_per_s: rate that a client must keep up in the long run.
    """

    def __init__(self, most_s: float, bytes_per_s: float) -> None:
        self._most_s = most_s
        self._bytes_per_s = bytes_per_s
        self.left_s = most_s

    def spend(self, waited_s: float, received: int) -> None:
        """The service has waited for so many bytes to pass."""
        left_s = self.left_s - waited_s + received / self._bytes_per_s
        self.left_s = min(self._most_s, left_s)

    def __str__(self) -> str:
        return f"a message every {self._most_s:g} s, {self._bytes_per_s:g} bytes/s in the long run"


class RequestStream(Iterator[RequestT], Generic[RequestT]):
    """The messages of `requests`, as long as the `allowance` lasts, and all within
    `total_timeout_s`.

    gRPC's own iterator blocks without limit, so a thread reads it. That thread holds one message at
    most; gRPC's flow control slows the client down. Use as a context manager.

    Args:
        size: bytes of a message.

    Raises:
        TooSlowError: from `__next__`: a limit has passed.
        CancelledError: from `__next__`: the call has ended.
    """

    def __init__(
        self,
        requests: Iterable[RequestT],
        *,
        allowance: Allowance,
        total_timeout_s: float,
        cancelled: threading.Event,
        size: Callable[[RequestT], int],
    ) -> None:
        self._allowance = allowance
        self._size = size
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
        timeout = min(self._allowance.left_s, self._left_s)
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
        waited = time.monotonic() - began
        self._left_s -= waited
        self._allowance.spend(waited, 0 if message is None else self._size(message))
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
        if self._left_s <= self._allowance.left_s:
            return TooSlowError("the upload took too long", expected=f"{self._total_s:g} s in all")
        return TooSlowError("the client is silent or too slow", expected=self._allowance)

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
