"""Logs of the parts: one file each, begun anew at every start, a few old ones kept."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Generator
from pathlib import Path
from typing import TextIO

_KEPT = 3
"""Logs of earlier starts: enough to see why the start before last failed."""

_POLL_S = 0.2


def rotate(log: Path) -> None:
    """Moves `log` to ``<log>.1``, that to ``<log>.2``, and so on; the oldest goes."""
    if not log.exists():
        return
    for number in range(_KEPT - 1, 0, -1):
        older = log.with_name(f"{log.name}.{number}")
        if older.exists():
            older.replace(log.with_name(f"{log.name}.{number + 1}"))
    log.replace(log.with_name(f"{log.name}.1"))


def tail(log: Path, lines: int) -> tuple[str, ...]:
    """The last `lines` lines, without their ends; none when there is no log."""
    try:
        with log.open(encoding="utf-8", errors="replace") as file:
            return tuple(line.rstrip("\n") for line in deque(file, maxlen=lines))
    except FileNotFoundError:
        return ()


def follow(log: Path, lines: int) -> Generator[str, None, None]:
    """The last `lines` lines and every later one, over restarts, until the caller stops."""
    while not log.exists():
        time.sleep(_POLL_S)
    file: TextIO = log.open(encoding="utf-8", errors="replace")
    try:
        yield from (line.rstrip("\n") for line in deque(file, maxlen=lines))
        rest = ""
        while True:
            text = file.readline()
            rest += text
            if rest.endswith("\n"):
                yield rest.rstrip("\n")
                rest = ""
            elif not text:
                time.sleep(_POLL_S)
                file = _current(file, log)
    finally:
        file.close()


def _current(file: TextIO, log: Path) -> TextIO:
    """`file`, or the log that took its place."""
    try:
        if log.stat().st_ino == os.fstat(file.fileno()).st_ino:
            return file
    except FileNotFoundError:
        return file  # between two starts
    file.close()
    return log.open(encoding="utf-8", errors="replace")
