"""A log line holds what is needed and no more, whatever a client or a file sent."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest
from atlas_core.json_logs import MAX_CHARACTERS, JsonLines, shortened

MEBIBYTE = "é" * 2**20


def line(message: str, fields: dict[str, Any], error: BaseException | None = None) -> str:
    info = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord("name", logging.INFO, "file", 1, message, (), info)
    record.fields = fields
    return JsonLines().format(record)


def test_ordinary_values_stay_as_they_are() -> None:
    fields = {"case": "BDMAP_00000001", "seconds": 1.5, "ok": True, "none": None, "shape": [1, 2]}
    said = json.loads(line("call done", fields))
    assert {key: said[key] for key in fields} == fields
    assert said["message"] == "call done"


@pytest.mark.parametrize("value", [MEBIBYTE, [MEBIBYTE], {"a": MEBIBYTE}, 2**20 * [1]])
def test_no_field_is_longer_than_the_bound(value: object) -> None:
    said = line("call done", {"case": value})
    assert len(said) < 2 * MAX_CHARACTERS
    assert "characters left out" in json.loads(said)["case"]


def test_neither_message_nor_traceback_is() -> None:
    try:
        raise ValueError(MEBIBYTE)
    except ValueError:
        said = line(MEBIBYTE, {}, sys.exception())
    assert len(said) < 13 * MAX_CHARACTERS
    traceback = json.loads(said)["traceback"]
    assert traceback.startswith("Traceback")
    assert "ValueError" in traceback


def test_a_shortened_text_says_how_much_is_left_out() -> None:
    assert shortened("0123456789", 10) == "0123456789"
    assert shortened("01234567890", 10) == "01234…[1 characters left out]…67890"
