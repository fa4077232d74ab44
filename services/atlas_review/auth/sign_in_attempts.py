"""How often sign-in failed lately, per name and per address."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, Literal

from atlas_review.problems import NotSignedIn, TooManyAttempts

WINDOW_S: Final = 900.0

KEPT: Final = 10_000
"""Keys remembered; whoever tries more names than that pushes out his own oldest tries."""


Key = tuple[Literal["name", "address"], str]

_log = logging.getLogger(__name__)


class Attempts:
    """Counts failures in memory. Replicas count each for itself. Safe to share between threads."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[Key, deque[float]] = OrderedDict()
        self._under_way: Counter[Key] = Counter()
        self._ended = threading.Condition()

    @contextmanager
    def counted(self, limits: Mapping[Key, int]) -> Iterator[None]:
        """One try, which is the block; if that raises `NotSignedIn`, the try has failed.

        A try that is under way may fail yet. So no more are let in at once than may fail; the next
        one waits until one of them has ended.

        Args:
            limits: who tries → failures within `WINDOW_S` after which he has to wait.

        Raises:
            TooManyAttempts: one of the keys has failed too often; says when to try again.
        """
        with self._ended:
            while not self._has_room(limits):
                self._ended.wait()
            self._under_way.update(limits.keys())
        failed = False
        try:
            yield
        except NotSignedIn:
            failed = True
            raise
        finally:
            with self._ended:
                self._end(limits, failed)
                self._ended.notify_all()

    def _has_room(self, limits: Mapping[Key, int]) -> bool:
        now = self._clock()
        room = True
        for key, allowed in limits.items():
            failures = self._recent(key, now)
            if len(failures) >= allowed:
                raise TooManyAttempts(math.ceil(failures[0] + WINDOW_S - now))
            room = room and len(failures) + self._under_way[key] < allowed
        return room

    def _end(self, limits: Mapping[Key, int], failed: bool) -> None:
        self._under_way -= Counter(limits.keys())  # what comes to 0 is forgotten
        if not failed:
            return
        now = self._clock()
        for key, allowed in limits.items():
            failures = self._recent(key, now)
            failures.append(now)
            self._failures[key] = failures
            self._failures.move_to_end(key)
            if len(failures) == allowed:
                _tell(key)
        while len(self._failures) > KEPT:
            self._failures.popitem(last=False)

    def _recent(self, key: Key, now: float) -> deque[float]:
        failures = self._failures.get(key, deque())
        while failures and failures[0] <= now - WINDOW_S:
            failures.popleft()
        return failures


def _tell(key: Key) -> None:
    """Of addresses alone: somebody may have typed a password where the name goes."""
    kind, value = key
    if kind == "address":
        _log.warning(
            "too many failed sign-ins from one address, which now has to wait; if a proxy is "
            "there, let it send X-Forwarded-For, and name it in ATLAS_REVIEW_TRUSTED_PROXIES",
            extra={"fields": {"address": value}},
        )
