"""A cache of sign-ins, so that not every request costs a query."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from atlas_core.review import SignIn, SignIns

CACHED_S: Final = 5.0
"""A sign-out on another replica takes effect here after this long at the latest."""

MAX_ENTRIES: Final = 4096


class SignInCache:
    """`SignIns` behind a cache. Safe to share between threads."""

    def __init__(self, sign_ins: SignIns) -> None:
        self._sign_ins = sign_ins
        self._entries: OrderedDict[tuple[str, str], tuple[float, SignIn]] = OrderedDict()
        self._lock = threading.Lock()

    def start(
        self, kind: str, user: str, roles: Sequence[str], lifetime: timedelta
    ) -> tuple[str, SignIn]:
        """See `SignIns.start`."""
        return self._sign_ins.start(kind, user, roles, lifetime)

    def cached(self, kind: str, secret: str) -> SignIn | None:
        """The sign-in, if it was looked up within the last `CACHED_S`."""
        with self._lock:
            until, sign_in = self._entries.get((kind, secret), (0.0, None))
        if sign_in is None or until < time.monotonic() or sign_in.expires_at <= datetime.now(UTC):
            return None
        return sign_in

    def find(self, kind: str, secret: str) -> SignIn | None:
        """See `SignIns.find`."""
        sign_in = self._sign_ins.find(kind, secret)
        if sign_in is not None:
            with self._lock:
                self._entries[(kind, secret)] = (time.monotonic() + CACHED_S, sign_in)
                while len(self._entries) > MAX_ENTRIES:
                    self._entries.popitem(last=False)
        return sign_in

    def end(self, secret: str) -> bool:
        """See `SignIns.end`."""
        with self._lock:
            for kind in ("session", "bearer"):
                self._entries.pop((kind, secret), None)
        return self._sign_ins.end(secret)
