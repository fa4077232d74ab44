"""Runs that must not overlap, across the processes of one machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_POLL_S = 1.0
"""How often a waiting run looks whether the other one, which may take hours, has ended."""


@contextmanager
def exclusive_run(lock: Path, on_event: Callable[[str], None]) -> Iterator[None]:
    """Wait until no other process is in such a block; the kernel releases the lock of one that
    dies."""
    file_lock = FileLock(lock, poll_interval=_POLL_S)
    try:
        held = file_lock.acquire(blocking=False)
    except Timeout:
        on_event("waiting for another run of the loop")
        held = file_lock.acquire()
    with held:
        yield
