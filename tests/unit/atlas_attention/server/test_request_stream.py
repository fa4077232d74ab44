"""A request stream is read with time limits."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

import pytest
from atlas_attention.server.request_stream import Allowance, RequestStream
from atlas_attention.server.status import TooSlowError


def request_stream(
    requests: Iterator[int],
    *,
    idle_s: float = 5.0,
    total_s: float = 60.0,
    message_bytes: int = 2**20,
    cancelled: threading.Event | None = None,
) -> RequestStream[int]:
    return RequestStream(
        requests,
        allowance=Allowance(idle_s, bytes_per_s=2**10),
        total_timeout_s=total_s,
        cancelled=cancelled or threading.Event(),
        size=lambda _: message_bytes,
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


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"idle_s": 0.4, "message_bytes": 2}, "1024 bytes/s in the long run"),
        ({"idle_s": 5, "total_s": 0.4}, r"0\.4 s in all"),
    ],
    ids=["below the rate", "for too long"],
)
def test_a_slow_trickle_is_cut_off_too(limits: dict[str, Any], message: str) -> None:
    trickle: queue.SimpleQueue[int] = queue.SimpleQueue()
    pulse = threading.Event()

    def drip() -> None:
        while not pulse.wait(0.05):
            trickle.put(1)

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        with (
            request_stream(iter(trickle.get, None), **limits) as messages,
            pytest.raises(TooSlowError, match=message),
        ):
            for _ in messages:
                pass
    finally:
        pulse.set()
        thread.join()
        trickle.put(1)


def test_what_has_come_pays_for_a_later_pause_but_not_for_a_longer_one() -> None:
    allowance = Allowance(10.0, bytes_per_s=100.0)
    allowance.spend(8.0, received=500)
    assert allowance.left_s == 7.0
    allowance.spend(0.0, received=10**9)
    assert allowance.left_s == 10.0
    for _ in range(4):
        allowance.spend(5.0, received=2)
    assert allowance.left_s < 0


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
