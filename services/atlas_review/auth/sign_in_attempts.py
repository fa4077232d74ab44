"""How often sign-in has failed recently, per network, and how many are being checked."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from atlas_review.errors import NotSignedIn, TooManyAttempts

WINDOW_S: Final = 900.0

MAX_NETWORKS: Final = 100_000
"""Networks that are remembered, some 40 MB. Passwords are hashed too slowly for so many to fail
within the window, so whoever comes from many cannot wipe out their own failures."""

MAX_PENDING: Final = 64
"""Attempts that wait for their hash, a few seconds of work; whoever comes later tries again."""

BUSY_RETRY_S: Final = 2

_log = logging.getLogger(__name__)


class SignInAttempts:
    """Counts failures in memory; each process counts for itself. For one thread, that of the event
    loop: nobody ever waits in it.

    Failures are not counted by name: whoever knew one could lock its owner out.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, list[float]] = OrderedDict()
        self._pending: Counter[str] = Counter()
        self._all_pending = 0

    @contextmanager
    def attempt(self, limits: Mapping[str, int]) -> Iterator[None]:
        """One attempt, made in the block; it has failed if the block raises `NotSignedIn`.

        A pending attempt may still fail, so no more are admitted at once than may fail.

        Args:
            limits: network → failures within `WINDOW_S` after which it is locked out.

        Raises:
            TooManyAttempts: one of the networks is locked out, or too many attempts are pending;
                says when to try again.
        """
        self._require_room(limits)
        self._pending.update(limits.keys())
        self._all_pending += 1
        failed = False
        try:
            yield
        except NotSignedIn:
            failed = True
            raise
        finally:
            self._all_pending -= 1
            self._pending -= Counter(limits.keys())  # drops those that come to 0
            if failed:
                self._note_failure(limits)

    def _require_room(self, limits: Mapping[str, int]) -> None:
        now = self._clock()
        for network, allowed in limits.items():
            failures = self._recent(network, now)
            if len(failures) >= allowed:
                raise TooManyAttempts(math.ceil(failures[0] + WINDOW_S - now))
        if self._all_pending >= MAX_PENDING or any(
            len(self._recent(network, now)) + self._pending[network] >= allowed
            for network, allowed in limits.items()
        ):
            raise TooManyAttempts(BUSY_RETRY_S)

    def _note_failure(self, limits: Mapping[str, int]) -> None:
        now = self._clock()
        for network, allowed in limits.items():
            failures = [*self._recent(network, now), now]
            self._failures[network] = failures
            self._failures.move_to_end(network)
            if len(failures) == allowed:
                _warn(network)
        while self._failures and (
            len(self._failures) > MAX_NETWORKS
            or next(iter(self._failures.values()))[-1] <= now - WINDOW_S
        ):
            self._failures.popitem(last=False)

    def _recent(self, network: str, now: float) -> list[float]:
        return [at for at in self._failures.get(network, ()) if at > now - WINDOW_S]


def _warn(network: str) -> None:
    _log.warning(
        "too many failed sign-ins from one address, which now has to wait; if a proxy is "
        "there, let it send X-Forwarded-For, and name it in ATLAS_REVIEW_TRUSTED_PROXIES",
        extra={"fields": {"address": network}},
    )
