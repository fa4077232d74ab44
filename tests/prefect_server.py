"""A Prefect server for flows that run in the process of the tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prefect.events.worker import EventsWorker
from prefect.testing.utilities import prefect_test_harness


@contextmanager
def prefect_server() -> Iterator[None]:
    """A server of its own; what runs in this process meanwhile is told to it.

    A process has one sender of events, which stays with the server that it met first. States of
    tasks are events: told to the server of an earlier test, which is gone, they never arrive.
    """
    EventsWorker.drain_all(timeout=0)
    with prefect_test_harness(server_startup_timeout=300):
        yield
