"""The clock that leases, labels and sign-ins go by; tests set their own."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
"""Returns the current time, in UTC."""


def utc_now() -> datetime:
    """The current time, in UTC."""
    return datetime.now(UTC)
