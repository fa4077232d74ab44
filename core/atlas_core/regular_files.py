"""Files of others, opened only if reading them comes to an end."""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path

from atlas_core.errors import CorruptFile, LimitExceeded, NotFound


def open_regular(path: Path) -> BufferedReader:
    """Opens a regular file, or a symbolic link to one, for reading.

    Raises:
        NotFound: it cannot be opened, or is a folder, pipe, socket or device: reading those may
            wait for ever or never end.
    """
    try:
        # Without O_NONBLOCK, opening a pipe waits for somebody who writes to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise NotFound("file cannot be opened", got=error.strerror) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotFound("not a regular file", expected="no folder, pipe, socket or device")
    return os.fdopen(descriptor, "rb")


def read_small(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file.

    Raises:
        NotFound: as `open_regular`.
        CorruptFile: it cannot be read to its end.
        LimitExceeded: more than `max_bytes`.
    """
    with open_regular(path) as file:
        try:
            content = file.read(max_bytes + 1)
        except OSError as error:
            raise CorruptFile("file cannot be read", got=error.strerror) from None
    if len(content) > max_bytes:
        raise LimitExceeded("file is too large", expected=f"at most {max_bytes} bytes")
    return content
