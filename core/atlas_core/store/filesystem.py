"""What the case store needs of the file system under it, and whether that of a folder has it.

    python -m atlas_core.store.filesystem FOLDER [AGAIN] [--json]

`AGAIN` is the same folder by another mount: of a second machine's share, or mounted twice with
``nosharecache``. Then one side writes and locks, and the other one reads and waits, as pods on two
nodes do. Exit status 1 if something is missing. What is needed, and why, says
docs/explanation/store-on-nfs.md.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from filelock import FileLock, Timeout

from atlas_core.atomic_writes import move_folder, replace_file, scratch_folder, sync, write_synced

PREFIX: Final = ".filesystem-check."

REPLACEMENTS: Final = 20
BYTES: Final = 1 << 16
SEEN_WITHIN_S: Final = 2.0
"""A file that is on disk is there for everybody: rows that name it are read within milliseconds."""

PATIENCE_S: Final = 90.0
"""Longer than NFS keeps what it knows of a folder (``acdirmax``, 60 s)."""

_READER: Final = """
import sys, time
path, size, patience = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
def content():
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:  # ESTALE: replaced by another client between open and read
        return error.errno
print("missing" if content() is None else "there", flush=True)
sys.stdin.readline()
began = time.monotonic()
while (found := content()) is None and time.monotonic() - began < patience:
    time.sleep(0.01)
print("never" if found is None else time.monotonic() - began, flush=True)
reads = torn = stale = 0
while sys.stdin.readline().strip() == "again":
    reads += 1
    found = content()
    stale += isinstance(found, int)
    torn += found is None or isinstance(found, bytes) and (
        len(found) != size or found != found[:1] * size
    )
    print("read", flush=True)
print(reads, torn, stale, flush=True)
"""

_HOLDER: Final = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


class Requirement(NamedTuple):
    """Something that the store needs.

    Attributes:
        name: what.
        found: what was found, in words.
        remedy: what to do; empty where it is met.
    """

    name: str
    found: str
    remedy: str

    @property
    def met(self) -> bool:
        """Whether this file system has it."""
        return not self.remedy


Found = tuple[str, str]
"""What was found, and its remedy."""


def check_filesystem(folder: Path, again: Path | None = None) -> list[Requirement]:
    """Try out in `folder` everything that the store needs of its file system; takes about a second,
    and leaves nothing behind.

    Args:
        folder: there, and writable.
        again: the same folder by another mount.

    Raises:
        OSError: nothing can be written there.
    """
    with scratch_folder(folder, prefix=PREFIX) as scratch:
        other = scratch if again is None else again / scratch.name
        return [Requirement(name, *_tried(check, scratch, other)) for name, check in _CHECKS]


def _tried(check: Callable[[Path, Path], Found], scratch: Path, other: Path) -> Found:
    try:
        return check(scratch, other)
    except OSError as error:
        code = errno.errorcode.get(error.errno or 0, "?")
        return f"{code}: {error.strerror or error}", "take a file system that can do it"


def _syncs(scratch: Path, _other: Path) -> Found:
    began = time.monotonic()
    for number in range(10):
        write_synced(scratch / f"synced-{number}", b"x" * 4096)
        sync(scratch)
    return f"{(time.monotonic() - began) / 10 * 1000:.1f} ms each", ""


def _one_folder_wins(scratch: Path, _other: Path) -> Found:
    """What of two scorings of a case publishes its result."""
    for draft in ("one", "two"):
        (scratch / draft).mkdir()
        write_synced(scratch / draft / "content", draft.encode())
    move_folder(scratch / "one", scratch / "published")
    try:
        move_folder(scratch / "two", scratch / "published")
    except FileExistsError:
        if (scratch / "published" / "content").read_bytes() == b"one":
            return "the second is told, and the first stands", ""
    return (
        "a rename went over a folder that was not empty",
        "take a file system that renames as POSIX says",
    )


def _one_file_wins(scratch: Path, _other: Path) -> Found:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    os.close(os.open(scratch / "exclusive", flags, 0o600))
    with contextlib.suppress(FileExistsError):
        os.close(os.open(scratch / "exclusive", flags, 0o600))
        return "O_EXCL is ignored", "take a file system that knows O_EXCL"
    return "the second is told", ""


def _modes_stay(scratch: Path, _other: Path) -> Found:
    path = scratch / "private"
    replace_file(path, b"secret", mode=0o600)
    mode = path.stat().st_mode & 0o777
    remedy = "mount it with POSIX permissions: accounts are private by them"
    return f"asked for 600, got {mode:o}", "" if mode == 0o600 else remedy


def _long_names(scratch: Path, _other: Path) -> Found:
    write_synced(scratch / ("n" * 255), b"")
    return "taken", ""


def _others_see(scratch: Path, other: Path) -> Found:
    """Also by who looked for it before it was there: NFS remembers that."""
    with _reading(other / "new") as reader:
        reader.said()
        replace_file(scratch / "new", b"a" * BYTES)
        reader.tell("written")
        seen = reader.said()
    if seen == "never":
        return f"not within {PATIENCE_S:.0f} s", f"see that {other.parent} is the same folder"
    late = float(seen) > SEEN_WITHIN_S
    remedy = "mount with lookupcache=positive (NFS): what was not there is then asked for again"
    return f"after {float(seen):.2f} s", remedy if late else ""


def _replaced_whole(scratch: Path, other: Path) -> Found:
    """Accounts and configurations of models are replaced while others read them."""
    path = scratch / "replaced"
    replace_file(path, b"a" * BYTES)
    with _reading(other / "replaced") as reader:
        reader.said()
        reader.tell("written")
        if reader.said() == "never":
            return "it was not seen", f"see that {other.parent} is the same folder"
        for number in range(REPLACEMENTS):
            reader.tell("again")
            replace_file(path, (b"a", b"b")[number % 2] * BYTES)
            reader.said()
        reader.tell("enough")
        reads, torn, stale = map(int, reader.said().split())
    said = f"{reads} reads while it was replaced: {torn} torn or missing, {stale} stale"
    return said, "take a file system whose renames are atomic" if torn else ""


def _locks(scratch: Path, other: Path) -> Found:
    """Of promotions, contact sheets and accounts; one that was killed holds none."""
    path = scratch / "lock"
    path.touch()
    with _child(_HOLDER, str(other / "lock")) as holder:
        if holder.said() != "held":
            return "no lock can be had", "see the lock service of the file server"
        with contextlib.suppress(Timeout):
            with FileLock(path).acquire(blocking=False):
                pass
            remedy = "mount without nolock and local_lock (NFS): locks must reach the server"
            return "two held it at once", remedy
        holder.kill()
        began = time.monotonic()
        with (
            contextlib.suppress(Timeout),
            FileLock(path).acquire(timeout=PATIENCE_S, poll_interval=0.05),
        ):
            return f"free {time.monotonic() - began:.2f} s after its holder was killed", ""
    return (
        f"held for {PATIENCE_S:.0f} s after its holder was killed",
        "see the lock service of the file server",
    )


_CHECKS: Final[tuple[tuple[str, Callable[[Path, Path], Found]], ...]] = (
    ("files and folders are put on disk", _syncs),
    ("one writer of a folder wins", _one_folder_wins),
    ("one maker of a file wins", _one_file_wins),
    ("files keep their mode", _modes_stay),
    ("names of 255 bytes", _long_names),
    ("a new file is there for others", _others_see),
    ("a replaced file is whole for others", _replaced_whole),
    ("a lock keeps others out, and ends with its holder", _locks),
)


class _Child:
    """Another process, spoken to by lines."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def said(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def _child(program: str, *arguments: str) -> Iterator[_Child]:
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        child = _Child(process)
        try:
            yield child
        finally:
            child.kill()


def _reading(path: Path) -> contextlib.AbstractContextManager[_Child]:
    return _child(_READER, str(path), str(BYTES), str(PATIENCE_S))


def main(arguments: Sequence[str]) -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("again", type=Path, nargs="?", help="the same folder by another mount")
    parser.add_argument("--json", action="store_true")
    wanted = parser.parse_args(arguments)
    try:
        found = check_filesystem(wanted.folder, wanted.again)
    except OSError as error:
        sys.stderr.write(f"error: nothing can be written to {wanted.folder}: {error.strerror}\n")
        return 1
    if wanted.json:
        sys.stdout.write(
            json.dumps([one._asdict() | {"met": one.met} for one in found], indent=2) + "\n"
        )
    else:
        for one in found:
            remedy = f"; {one.remedy}" if one.remedy else ""
            verdict = "good " if one.met else "WRONG"
            sys.stdout.write(f"{verdict}  {one.name}: {one.found}{remedy}\n")
    return 0 if all(one.met for one in found) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
