"""Pseudonyms by a keyed hash: the same for the same thing, and of no use without the key.

Whoever has the key can check a guess (is this patient here?), so it is kept where the mapping is:
in the vault.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

UID_ROOT: Final = "2.25"
"""For UIDs out of 128 bits, by ISO/IEC 9834-8."""

MAX_SHIFT_DAYS: Final = 5 * 365
"""By so many days at most, and one at least, a patient's dates are moved into the past."""


@dataclass(frozen=True)
class Pseudonyms:
    """Functions of one key.

    Attributes:
        key: at least 32 random bytes.
    """

    key: bytes

    def uid(self, original: str) -> str:
        """A valid UID for `original`, of at most 44 characters."""
        return f"{UID_ROOT}.{int.from_bytes(self._hash('uid', original)[:16], 'big')}"

    def patient(self, identifier: str, issuer: str = "") -> str:
        """A name for the patient of this PatientID: ``P`` and 16 letters or digits."""
        digest = self._hash("patient", f"{issuer}\0{identifier}")
        return f"P{base64.b32encode(digest[:10]).decode()}"

    def shift_days(self, patient: str) -> int:
        """By how many days the dates of this patient are moved into the past; the same for all of
        them, so that intervals stay."""
        digest = self._hash("shift", patient)
        return 1 + int.from_bytes(digest[:8], "big") % MAX_SHIFT_DAYS

    def _hash(self, kind: str, text: str) -> bytes:
        return hmac.new(self.key, f"{kind}\0{text}".encode(), hashlib.sha256).digest()


def shifted(text: str, days: int) -> str:
    """A DICOM date, or date and time, `days` earlier; empty if it is none.

    >>> shifted("20240301", 1), shifted("20240301101112.5+0100", 1), shifted("soon", 1)
    ('20240229', '20240229101112.5+0100', '')
    """
    try:
        day = date(int(text[:4]), int(text[4:6]), int(text[6:8])) - timedelta(days)
    except (ValueError, OverflowError):
        return ""
    rest = text[8:]
    return f"{day:%Y%m%d}{rest}" if set(rest) <= set("0123456789.+-") else f"{day:%Y%m%d}"
