"""A limited number of calls is admitted and run, in order; the same work is done once."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest
from atlas_attention.scoring import Admission, BusyError

WAIT_S = 10.0


def test_calls_over_the_limit_are_refused_until_others_end() -> None:
    admission = Admission(max_calls=1, max_waiting=1)
    with admission.admitted():
        with admission.admitted(), pytest.raises(BusyError, match="at most 2"):
            admission.admitted().__enter__()
        with admission.admitted():
            pass


class Queued(threading.Event):
    """Shows when its call has begun to wait: a waiting call checks whether it is cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = threading.Event()

    def is_set(self) -> bool:
        self.waits.set()
        return super().is_set()


def test_at_most_max_calls_run_and_the_rest_follow_in_order() -> None:
    changes: list[int] = []
    admission = Admission(1, 8, lambda what, by: changes.append(by) if what == "working" else None)
    order: list[int] = []

    def call(number: int, queued: Queued) -> None:
        with admission.working(queued):
            order.append(number)

    with ThreadPoolExecutor(5) as pool:
        with admission.working(threading.Event()):
            calls = []
            for number in range(5):
                queued = Queued()
                calls.append(pool.submit(call, number, queued))
                assert queued.waits.wait(WAIT_S)
            assert order == []
        for done in calls:
            done.result(WAIT_S)
    assert order == [0, 1, 2, 3, 4]
    assert changes == [1, -1] * 6


def test_a_cancelled_call_stops_waiting_and_leaves_the_queue() -> None:
    admission = Admission(max_calls=1, max_waiting=2)
    cancelled = threading.Event()
    with admission.working(threading.Event()), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: admission.working(cancelled).__enter__())
        cancelled.set()
        assert isinstance(waiting.exception(WAIT_S), CancelledError)
    with admission.working(threading.Event()):
        pass


def test_one_call_at_a_time_does_the_same_work_and_others_go_on() -> None:
    admission = Admission(max_calls=4, max_waiting=4)
    done: set[str] = set()
    begun = 0

    def once() -> None:
        nonlocal begun
        with admission.exclusive("case", threading.Event()):
            if "case" not in done:
                begun += 1
                done.add("case")

    with (
        ThreadPoolExecutor(4) as pool,
        admission.exclusive("case", threading.Event()),
        admission.exclusive("another case", threading.Event()),
    ):
        calls = [pool.submit(once) for _ in range(4)]
        assert not any(call.done() for call in calls)
    for call in calls:
        call.result(WAIT_S)
    assert begun == 1
