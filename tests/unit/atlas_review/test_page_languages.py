"""Every text of the review page is in the language files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from page_languages import SOURCES, entries

LANGUAGES = sorted((SOURCES / "languages").glob("*.ts"))
TEXT = re.compile(r"(?<![\w.])t\('((?:[^'\\\n]|\\.)+)'")

PLAIN = (
    re.compile(r"(?:button|say|select)\('[A-Z]|'(?:aria-label|title|placeholder)': '[A-Z]"),
    re.compile(r"h\('(?:h[1-3]|p|summary|span)', \{[^}]*\}, '[A-Z]"),
)
"""Texts of buttons, headings and labels as literals, which stay English."""


@pytest.mark.parametrize("path", LANGUAGES, ids=lambda path: path.stem)
def test_every_text_is_translated_with_its_values(path: Path) -> None:
    known = entries(path.read_text())
    used = {
        key
        for source in SOURCES.rglob("*.ts")
        if source.parent.name != "languages"
        for key in TEXT.findall(source.read_text())
    }
    assert len(used) > 200
    assert sorted(used - set(known)) == []
    values = re.compile(r"\{\w+\}")
    wrong = [a for a, b in known.items() if set(values.findall(a)) != set(values.findall(b))]
    assert wrong == []


def test_no_button_heading_or_label_bypasses_the_language() -> None:
    found = [
        f"{source.name}: {line.strip()}"
        for source in SOURCES.rglob("*.ts")
        for line in source.read_text().splitlines()
        if any(pattern.search(line) for pattern in PLAIN)
    ]
    assert found == []
