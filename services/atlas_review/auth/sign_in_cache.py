"""Sign-ins with a short memory, so that not every request asks the database who asks."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from atlas_core.review import SignIn, SignIns

REMEMBERED_S: Final = 5.0
"""Another replica's sign-out is noticed after this long at the latest."""

KEPT: Final = 4096


class KnownSignIns:
    """`SignIns` with a memory. Safe to share between threads."""

    def __init__(self, sign_ins: SignIns) -> None:
        self._sign_ins = sign_ins
        self._known: OrderedDict[tuple[str, str], tuple[float, SignIn]] = OrderedDict()
        self._lock = threading.Lock()

    def start(
        self, kind: str, user: str, roles: Sequence[str], lasts: timedelta
    ) -> tuple[str, SignIn]:
        """See `SignIns.start`."""
        return self._sign_ins.start(kind, user, roles, lasts)

    def remembered(self, kind: str, secret: str) -> SignIn | None:
        """The sign-in, if it was asked for a moment ago."""
        with self._lock:
            until, sign_in = self._known.get((kind, secret), (0.0, None))
        if sign_in is None or until < time.monotonic() or sign_in.expires_at <= datetime.now(UTC):
            return None
        return sign_in

    def find(self, kind: str, secret: str) -> SignIn | None:
        """See `SignIns.find`."""
        sign_in = self._sign_ins.find(kind, secret)
        if sign_in is not None:
            with self._lock:
                self._known[(kind, secret)] = (time.monotonic() + REMEMBERED_S, sign_in)
                while len(self._known) > KEPT:
                    self._known.popitem(last=False)
        return sign_in

    def end(self, secret: str) -> None:
        """See `SignIns.end`."""
        with self._lock:
            for kind in ("session", "bearer"):
                self._known.pop((kind, secret), None)
        self._sign_ins.end(secret)
