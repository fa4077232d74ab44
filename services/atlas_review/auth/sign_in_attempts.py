"""How often sign-in has failed recently, per name and per address."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, Literal

from atlas_review.errors import NotSignedIn, TooManyAttempts

WINDOW_S: Final = 900.0

MAX_KEYS: Final = 10_000
"""Keys that are remembered; whoever tries more names evicts their own oldest attempts."""

AttemptKey = tuple[Literal["name", "address"], str]

_log = logging.getLogger(__name__)


class SignInAttempts:
    """Counts failures in memory; each replica counts for itself. Safe to share between threads."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[AttemptKey, deque[float]] = OrderedDict()
        self._pending: Counter[AttemptKey] = Counter()
        self._ended = threading.Condition()

    @contextmanager
    def attempt(self, limits: Mapping[AttemptKey, int]) -> Iterator[None]:
        """One attempt, made in the block; it has failed if the block raises `NotSignedIn`.

        A pending attempt may still fail, so no more are admitted at once than may fail; the next
        one waits until one of them has ended.

        Args:
            limits: key → failures within `WINDOW_S` after which it is locked out.

        Raises:
            TooManyAttempts: one of the keys is locked out; says when to try again.
        """
        with self._ended:
            while not self._has_room(limits):
                self._ended.wait()
            self._pending.update(limits.keys())
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

    def _has_room(self, limits: Mapping[AttemptKey, int]) -> bool:
        now = self._clock()
        room = True
        for key, allowed in limits.items():
            failures = self._recent(key, now)
            if len(failures) >= allowed:
                raise TooManyAttempts(math.ceil(failures[0] + WINDOW_S - now))
            room = room and len(failures) + self._pending[key] < allowed
        return room

    def _end(self, limits: Mapping[AttemptKey, int], failed: bool) -> None:
        self._pending -= Counter(limits.keys())  # drops keys that come to 0
        if not failed:
            return
        now = self._clock()
        for key, allowed in limits.items():
            failures = self._recent(key, now)
            failures.append(now)
            self._failures[key] = failures
            self._failures.move_to_end(key)
            if len(failures) == allowed:
                _warn(key)
        while len(self._failures) > MAX_KEYS:
            self._failures.popitem(last=False)

    def _recent(self, key: AttemptKey, now: float) -> deque[float]:
        failures = self._failures.get(key, deque())
        while failures and failures[0] <= now - WINDOW_S:
            failures.popleft()
        return failures


def _warn(key: AttemptKey) -> None:
    """Names stay out of the log: somebody may have typed a password where the name goes."""
    kind, value = key
    if kind == "address":
        _log.warning(
            "too many failed sign-ins from one address, which now has to wait; if a proxy is "
            "there, let it send X-Forwarded-For, and name it in ATLAS_REVIEW_TRUSTED_PROXIES",
            extra={"fields": {"address": value}},
        )
