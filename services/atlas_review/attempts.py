"""How often sign-in failed lately, per name and per address."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final

from atlas_review.problems import TooManyAttempts

WINDOW_S: Final = 900.0

KEPT: Final = 10_000
"""Keys remembered; whoever tries more names than that pushes out his own oldest tries."""


class Attempts:
    """Counts failures in memory. Replicas count each for itself. Safe to share between threads.

    Args:
        allowed: failures within `WINDOW_S` after which a key has to wait.
    """

    def __init__(self, allowed: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._allowed = allowed
        self._clock = clock
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def require(self, *keys: str) -> None:
        """Let through, unless one of `keys` has failed too often.

        Raises:
            TooManyAttempts: says when to try again.
        """
        with self._lock:
            now = self._clock()
            for key in keys:
                failures = self._recent(key, now)
                if len(failures) >= self._allowed:
                    raise TooManyAttempts(math.ceil(failures[0] + WINDOW_S - now))

    def failed(self, *keys: str) -> None:
        """One more failure of each of `keys`."""
        with self._lock:
            now = self._clock()
            for key in keys:
                failures = self._recent(key, now)
                failures.append(now)
                self._failures[key] = failures
                self._failures.move_to_end(key)
            while len(self._failures) > KEPT:
                self._failures.popitem(last=False)

    def _recent(self, key: str, now: float) -> deque[float]:
        failures = self._failures.get(key, deque())
        while failures and failures[0] <= now - WINDOW_S:
            failures.popleft()
        return failures
