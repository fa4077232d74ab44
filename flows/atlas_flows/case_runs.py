"""What runs over many cases have in common: which cases, how many are done, and who watches.

Nothing here knows Prefect, nor what is done to a case.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from atlas_core.catalog import Catalog


class CaseDone(Protocol):
    """What came of one case."""

    @property
    def case_id(self) -> str: ...
    @property
    def outcome(self) -> str: ...
    @property
    def seconds(self) -> float: ...
    @property
    def message(self) -> str: ...
    @property
    def good(self) -> bool: ...


Observer = Callable[[int, int, CaseDone], None]
"""Takes cases done, cases in all, and what came of the last one."""


class Progress:
    """Counts outcomes across threads and tells an observer after each case."""

    def __init__(self, total: int, observer: Observer) -> None:
        self.total = total
        self._observer = observer
        self._done = 0
        self._lock = threading.Lock()

    def add(self, outcome: CaseDone) -> None:
        # The observer is called under the lock, so that it sees counts in order.
        with self._lock:
            self._done += 1
            self._observer(self._done, self.total, outcome)


_observer: ContextVar[Observer | None] = ContextVar("case_observer", default=None)


@contextmanager
def observed_by(observer: Observer) -> Iterator[None]:
    """Within the block, runs of this process tell `observer` (done, total, outcome) per case."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


def current_observer() -> Observer | None:
    """The observer set by `observed_by`; None where there is none."""
    return _observer.get()


def candidates(catalog: Catalog, dataset: str | None, case_ids: Iterable[str]) -> list[str]:
    """The cases that a run is asked for: those of `dataset` (None: of all) that are named, in the
    order given; all of it if none is.

    Raises:
        NotFound: an unknown dataset or case.
    """
    if dataset is not None:
        catalog.dataset(dataset)  # a typing error must not look like an empty dataset
    named = list(dict.fromkeys(case_ids))
    if not named:
        return [case.id for case in catalog.cases(dataset)]
    chosen = [catalog.case(case_id) for case_id in named]
    return [case.id for case in chosen if dataset in (None, case.dataset)]
