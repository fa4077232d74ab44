"""The clock that leases, labels and sign-ins go by; tests set their own."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

Clock = Callable[[], datetime]
"""Returns the current time, in UTC."""
