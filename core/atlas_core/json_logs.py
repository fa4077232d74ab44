"""Logs as JSON lines on stderr: case ids and numbers, never the contents of files or headers."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

MAX_CHARACTERS = 2000
"""Of a message or a field, and of a traceback ten times as many: far longer than any name here."""


def shortened(text: str, most: int = MAX_CHARACTERS) -> str:
    """`text`, or its beginning and end with how much is left out between them.

    >>> shortened("abcdefghij", 4)
    'ab…[6 characters left out]…ij'
    """
    if len(text) <= most:
        return text
    head, tail = text[: most - most // 2], text[len(text) - most // 2 :]
    return f"{head}…[{len(text) - most} characters left out]…{tail}"


def _bounded(value: object) -> object:
    """`value` as JSON holds it, or as a shortened text if that would be long."""
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    short = shortened(text)
    return value if short is text and not isinstance(value, str) else short


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the fields of ``extra``.

    No line grows with what a client or a file sent: see `MAX_CHARACTERS`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": shortened(record.getMessage()),
            **{key: _bounded(value) for key, value in getattr(record, "fields", {}).items()},
        }
        if record.exc_info:
            traceback = self.formatException(record.exc_info)
            line["traceback"] = shortened(traceback, 10 * MAX_CHARACTERS)
        return json.dumps(line, ensure_ascii=False, default=str)


def log_to_stderr(level: str) -> None:
    """Send all logs of this process to stderr, as `JsonLines`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
