"""A request stream is read with time limits."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError

import pytest
from atlas_attention.server.request_stream import RequestStream
from atlas_attention.server.status import TooSlowError


def request_stream(
    requests: Iterator[int],
    *,
    idle_s: float = 5.0,
    total_s: float = 60.0,
    cancelled: threading.Event | None = None,
) -> RequestStream[int]:
    return RequestStream(
        requests,
        idle_timeout_s=idle_s,
        total_timeout_s=total_s,
        cancelled=cancelled or threading.Event(),
    )


def test_all_messages_come_in_order() -> None:
    with request_stream(iter(range(20))) as messages:
        assert list(messages) == list(range(20))


def test_at_most_three_messages_are_read_ahead() -> None:
    """One in the queue, one held by the reader, one that was taken."""
    taken: queue.SimpleQueue[int] = queue.SimpleQueue()
    asked = threading.Event()

    def source() -> Iterator[int]:
        for number in range(100):
            taken.put(number)
            if number == 2:
                asked.set()
            yield number

    with request_stream(source()) as messages:
        assert next(messages) == 0
        assert asked.wait(5)
        assert taken.qsize() <= 3


def test_a_silent_client_is_cut_off() -> None:
    silent: queue.SimpleQueue[int] = queue.SimpleQueue()
    silent.put(7)
    with request_stream(iter(silent.get, None), idle_s=0.2) as messages:
        assert next(messages) == 7
        with pytest.raises(TooSlowError, match=r"every 0\.2 s"):
            next(messages)
    silent.put(8)


def test_a_slow_trickle_is_cut_off_too() -> None:
    trickle: queue.SimpleQueue[int] = queue.SimpleQueue()
    pulse = threading.Event()

    def drip() -> None:
        while not pulse.wait(0.05):
            trickle.put(1)

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        with (
            request_stream(iter(trickle.get, None), idle_s=5, total_s=0.4) as messages,
            pytest.raises(TooSlowError, match=r"0\.4 s in all"),
        ):
            for _ in messages:
                pass
    finally:
        pulse.set()
        thread.join()
        trickle.put(1)


def test_a_cancelled_call_stops_waiting() -> None:
    cancelled = threading.Event()
    silent: queue.SimpleQueue[int] = queue.SimpleQueue()
    with request_stream(iter(silent.get, None), cancelled=cancelled) as messages:
        threading.Timer(0.1, cancelled.set).start()
        with pytest.raises(CancelledError):
            next(messages)
    silent.put(1)


def test_a_broken_stream_counts_as_cancelled() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise RuntimeError("what gRPC raises when the client has left")

    with request_stream(broken()) as messages, pytest.raises(CancelledError):
        list(messages)
