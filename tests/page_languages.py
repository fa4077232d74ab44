"""The language files of the review page."""

from __future__ import annotations

import re

from triton_server import REPOSITORY

SOURCES = REPOSITORY / "services" / "atlas_review" / "web" / "src"
ENTRY = re.compile(r"^  (?:'((?:[^'\\]|\\.)*)'|(\w+)):\s*'((?:[^'\\]|\\.)*)'", re.MULTILINE)


def entries(text: str) -> dict[str, str]:
    """A language file as English → translation."""
    text = re.sub(r":\n\s+'", ": '", text)
    return {quoted or word: translated for quoted, word, translated in ENTRY.findall(text)}
