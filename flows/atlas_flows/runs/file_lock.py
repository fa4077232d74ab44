"""One at a time, across processes of one machine."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone(lock: Path, on_event: Callable[[str], None]) -> Iterator[None]:
    """Waits until nobody else is in such a block; the kernel lifts the lock of whoever dies."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_event("waiting for another run of the loop")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
