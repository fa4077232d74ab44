"""Files and folders that appear whole or not at all; drafts are named after their writer.

A crash leaves a draft behind; whoever writes there next tells by its name that nobody needs it.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final

ABANDONED_AFTER_S: Final = 24 * 3600.0
"""Nobody writes one folder for a day without writing into it."""


def draft_name() -> str:
    """A name that nobody else uses and that tells whose draft it is."""
    return f"{_host()}.{os.getpid()}.{secrets.token_hex(8)}"


def is_stale(folder: Path, seconds: float, *, prefix: str = "") -> bool:
    """Whether the draft `folder` belongs to a process of this machine that is gone, or was not
    written to for `seconds`.

    Args:
        prefix: what stands before the `draft_name` in its name.
    """
    host, _, rest = folder.name.removeprefix(prefix).partition(".")
    pid = rest.partition(".")[0]
    if host == _host() and pid.isdigit() and not _lives(int(pid)):
        return True
    return time.time() - _last_written(folder) > seconds


@contextmanager
def appearing(target: Path, *, mode: int = 0o755) -> Iterator[Path]:
    """A folder beside `target` that becomes `target` when the block ends, and goes if it fails.

    What killed writers of the same target left is removed first. Files are the caller's to put on
    disk; the folders are put there here.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}."
    for left in target.parent.iterdir():
        ours = left.name.startswith(prefix) and left.is_dir()
        if ours and is_stale(left, ABANDONED_AFTER_S, prefix=prefix):
            shutil.rmtree(left, ignore_errors=True)
    folder = target.parent / f"{prefix}{draft_name()}"
    folder.mkdir(mode=mode)
    try:
        yield folder
        for path in sorted(folder.rglob("*/"), reverse=True):
            sync(path)
        sync(folder)
        folder.rename(target)
        sync(target.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def replace_file(path: Path, data: bytes | memoryview) -> None:
    """Write `data` to `path`, all or nothing; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    draft = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # A temporary file is private; a model is read by whoever serves it or trains on.
        draft.chmod(0o644)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def write_synced(path: Path, content: bytes) -> None:
    """A new file that is on disk when this returns."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Put a file, or the entries of a folder, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """`sync` for all that is below `folder`, and itself."""
    for path in sorted(folder.rglob("*"), reverse=True):
        sync(path)
    sync(folder)


@cache
def _host() -> str:
    """Where process ids mean something: the machine and, as containers may share its name, the
    namespace of process ids."""
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())
    namespace = Path("/proc/self/ns/pid")
    return f"{host}-{namespace.stat().st_ino}" if namespace.exists() else host


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # signal 0: asks only
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's process
    return True


def _last_written(folder: Path) -> float:
    """Newest change below `folder`, in seconds since the epoch; now if it vanishes meanwhile."""
    try:
        return max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))
    except FileNotFoundError:
        return time.time()
