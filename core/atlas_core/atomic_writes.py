"""Files and folders that appear complete or not at all, and are on disk once they appear.

Everything is written as a draft: a hidden file or folder on the same file system, which is put on
disk and then takes its name by one rename. A reader, and whoever comes after a crash or a power
cut, finds the old content or the new, never a part of either. Drafts that killed writers left
behind carry the names of their writers (`draft_name`), so that a later writer can remove them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

ABANDONED_AFTER_S: Final = 24 * 3600.0
"""No writer leaves its draft untouched for a day: one that is older was left by a crash."""

_DRAFT_NAME: Final = re.compile(r"[A-Za-z0-9-]+\.[0-9]+\.[0-9a-f]{16}")
"""See `draft_name`; what else lies beside a file, such as its lock, is nobody's draft."""


class AtomicFile:
    """A file written piece by piece, which replaces `path` when it is committed.

    As a context manager it is committed at the end of the block, and discarded if the block fails.

    Args:
        path: its folder exists.
        mode: permissions of the file; None: those that the process gives by its umask.
    """

    def __init__(self, path: Path, *, mode: int | None = None) -> None:
        self._path = path
        self._mode = mode
        self._draft = _new_draft_path(path)
        # A file with a mode of its own is private until it is complete.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        descriptor = os.open(self._draft, flags, 0o666 if mode is None else 0o600)
        self._file = os.fdopen(descriptor, "wb")

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append `data`; the number of bytes written."""
        return self._file.write(data)

    def flush(self) -> None:
        """Hand what was written to the system; compressors call it."""
        self._file.flush()

    def commit(self) -> None:
        """Put the file on disk under its name. If that fails, call `discard`."""
        with self._file:
            self._file.flush()
            if self._mode is not None:
                os.fchmod(self._file.fileno(), self._mode)
            os.fsync(self._file.fileno())
        move_file(self._draft, self._path)

    def discard(self) -> None:
        """Remove the draft; nothing happens after `commit`."""
        with contextlib.suppress(OSError):  # a full disk: what cannot be flushed goes anyway
            self._file.close()
        self._draft.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.commit()
        finally:
            self.discard()


def replace_file(path: Path, data: bytes | memoryview, *, mode: int = 0o644) -> None:
    """Write `data` to `path`, all or nothing; its folder is made if it is missing.

    Args:
        mode: permissions of the file, whatever the umask; by default others may read it, as model
            servers and other users do.
    """
    make_folders(path.parent)
    with AtomicFile(path, mode=mode) as file:
        file.write(data)


@contextmanager
def new_folder(target: Path, *, mode: int = 0o755) -> Iterator[Path]:
    """A folder beside `target` that becomes `target` when the block ends, and goes if it fails.

    Its files are for the caller to put on disk (`synced_file`, `write_synced`); its folders are put
    on disk here.

    Args:
        target: must not exist, or be an empty folder, when the block ends.
        mode: permissions of the folder, which the umask may restrict.

    Raises:
        FileExistsError: `target` holds something when the block ends.
    """
    make_folders(target.parent)
    draft = _new_draft_path(target)
    draft.mkdir(mode=mode)
    try:
        yield draft
        for path in sorted(draft.rglob("*/"), reverse=True):
            sync(path)
        sync(draft)
        move_folder(draft, target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


@contextmanager
def scratch_folder(parent: Path, *, prefix: str = "", mode: int = 0o700) -> Iterator[Path]:
    """A new folder in `parent`, on its file system, removed with its content when the block ends.

    Drafts are made in it, and moved to their places with `move_file` and `move_folder`.

    Args:
        prefix: stands before its `draft_name`.
        mode: permissions of the folder, which the umask may restrict.
    """
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / f"{prefix}{draft_name()}"
    folder.mkdir(mode=mode)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def synced_file(path: Path) -> Iterator[BinaryIO]:
    """A new file, which is on disk when the block ends."""
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_synced(path: Path, content: bytes) -> None:
    """Write a new file, which is on disk when this returns."""
    with synced_file(path) as file:
        file.write(content)


def move_file(draft: Path, target: Path) -> None:
    """Rename a file that is on disk to `target`, replacing what is there, and make that last.

    Missing folders above `target` are made.
    """
    make_folders(target.parent)
    draft.replace(target)
    sync(target.parent)


def move_folder(draft: Path, target: Path) -> None:
    """Rename a folder that is on disk to `target`, and make that last.

    Missing folders above `target` are made.

    Raises:
        FileExistsError: a folder with content is there already; it stays as it is.
    """
    make_folders(target.parent)
    try:
        draft.rename(target)
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:  # for which POSIX also allows EEXIST
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        raise
    sync(target.parent)


def discard_folder(folder: Path, scratch: Path) -> bool:
    """Move `folder` into a `scratch_folder`, to be removed with it: no reader sees a part of it.

    Returns:
        False if there is no such folder.
    """
    try:
        folder.rename(scratch / secrets.token_hex(8))
    except FileNotFoundError:
        return False
    sync(folder.parent)
    return True


def make_folders(folder: Path, *, mode: int = 0o777) -> None:
    """Make `folder` and its missing parents, and put each of them on disk.

    Args:
        mode: permissions of each that is made, which the umask may restrict.
    """
    missing = [f for f in (folder, *folder.parents) if not f.is_dir()]
    for made in reversed(missing):
        made.mkdir(mode=mode, exist_ok=True)
        sync(made.parent)


def sync(path: Path) -> None:
    """Put a file, or the entries of a folder, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Put `folder` and everything below it on disk."""
    for path in sorted(folder.rglob("*"), reverse=True):
        sync(path)
    sync(folder)


def draft_name() -> str:
    """A unique name that says whose draft it is: ``<host>.<process id>.<random>``."""
    return f"{_host()}.{os.getpid()}.{secrets.token_hex(8)}"


def is_stale(draft: Path, seconds: float, *, prefix: str = "") -> bool:
    """Whether the file or folder `draft` belongs to a process of this machine that has ended, or
    was not written to for `seconds`.

    Args:
        prefix: stands before the `draft_name` in its name.
    """
    host, _, rest = draft.name.removeprefix(prefix).partition(".")
    pid = rest.partition(".")[0]
    if host == _host() and pid.isdigit() and not _is_running(int(pid)):
        return True
    return time.time() - _last_written(draft) > seconds


def _new_draft_path(target: Path) -> Path:
    """Where the next draft of `target` goes; drafts of it that killed writers left are removed."""
    prefix = f".{target.name}."
    for name in os.listdir(target.parent):  # noqa: PTH208  folders of many cases: names are enough
        if not (name.startswith(prefix) and _DRAFT_NAME.fullmatch(name, len(prefix))):
            continue
        left = target.with_name(name)
        if is_stale(left, ABANDONED_AFTER_S, prefix=prefix):
            shutil.rmtree(left, ignore_errors=True)
            with contextlib.suppress(OSError):  # gone with the line above, or another user's
                left.unlink()
    return target.with_name(f"{prefix}{draft_name()}")


@cache
def _host() -> str:
    """Where process ids are valid: the machine and, as containers may share its name, the
    namespace of process ids."""
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())
    namespace = Path("/proc/self/ns/pid")
    return f"{host}-{namespace.stat().st_ino}" if namespace.exists() else host


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # signal 0 only asks
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # a process of another user
    return True


def _last_written(draft: Path) -> float:
    """Newest change of `draft` or below it, in seconds since the epoch; now if it vanishes."""
    try:
        return max(path.lstat().st_mtime for path in (draft, *draft.rglob("*")))
    except FileNotFoundError:
        return time.time()
