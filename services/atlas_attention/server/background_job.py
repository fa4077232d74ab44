"""Work in a thread of its own, whose progress can be followed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextvars import copy_context
from typing import Generic, TypeVar

T = TypeVar("T")


class BackgroundJob(Generic[T]):
    """Runs ``work(report)`` in a thread; `report` takes done and total.

    Only the latest progress is kept, so a slow reader neither stops the work nor fills memory.
    """

    def __init__(self, work: Callable[[Callable[[int, int], None]], T]) -> None:
        self._work = work
        self._changed = threading.Condition()
        self._latest: tuple[int, int] | None = None
        self._ended = False
        self._result: T | None = None
        self._error: BaseException | None = None
        # In a copy of the caller's context, which holds the current span of its trace.
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._run,), name="score", daemon=True
        )
        self._thread.start()

    def progress(self) -> Iterator[tuple[int, int]]:
        """Done and total, each time they have changed, until the work has ended."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or self._latest is not None)
                latest, self._latest = self._latest, None
                if latest is None:
                    return
            yield latest

    def result(self) -> T:
        """What the work returned; blocks until it has ended.

        Raises:
            BaseException: what the work raised.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]  # no error, so there is a result

    def join(self) -> None:
        """Wait until the work has ended, with a result or an error."""
        self._thread.join()

    def _report(self, done: int, total: int) -> None:
        with self._changed:
            self._latest = (done, total)
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            self._result = self._work(self._report)
        except BaseException as error:  # raised by `result`
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
