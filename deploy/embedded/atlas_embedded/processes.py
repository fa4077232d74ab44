"""Processes that outlive the command that started them: started, found again, and ended.

A part's first process is remembered in a file with its start time, so that a process id which the
system gave to somebody else is never mistaken for ours. In addition every process of a stack
carries the stack's id in its environment, and hands it on: so children whose parent was killed, and
processes whose file was never written or was removed, are found as well.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from atlas_core.atomic_writes import replace_file

STACK_VARIABLE = "ATLASLOOP_STACK_ID"
COMPONENT_VARIABLE = "ATLASLOOP_STACK_COMPONENT"

_KILL_WAIT_S = 10.0
"""After SIGKILL only the kernel's own work is left; who is stuck in it longer waits for a disk."""


@dataclass(frozen=True)
class ProcessRecord:
    """Identity of one process, valid until it ends and never after.

    Attributes:
        pid: process id.
        started_ticks: start time as the kernel counts it, in clock ticks since boot.
        boot_id: which boot that was.
        started_at: the same moment as seconds since 1970, for people.
        launch: digest of how it was started.
    """

    pid: int
    started_ticks: int
    boot_id: str
    started_at: float
    launch: str

    @classmethod
    def of(cls, pid: int, launch: str = "") -> ProcessRecord | None:
        """The record of the process that has this id now; None when it has ended."""
        ticks = _started_ticks(pid)
        if ticks is None:
            return None
        try:
            started_at = psutil.Process(pid).create_time()
        except psutil.NoSuchProcess:
            return None
        return cls(pid, ticks, _boot_id(), started_at, launch)

    def alive(self) -> bool:
        """Whether this very process runs; a zombie does not."""
        return self.boot_id == _boot_id() and _started_ticks(self.pid) == self.started_ticks


_IN_FOLDER = 'cd -- "$0" && exec "$@"'
"""Spawning has no working directory of its own."""


def start(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    launch: str = "",
    folder: Path = Path(),
) -> ProcessRecord:
    """Starts a process in a session of its own, its output appended to `log`.

    It holds neither our terminal nor our files, and lives on when we end. `launch` is kept in the
    record; `folder` is its working directory.

    Raises:
        OSError: the program cannot be started.
    """
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), command[0])
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid = os.posix_spawn(
        "/bin/sh",
        ["/bin/sh", "-c", _IN_FOLDER, str(folder), *command],
        dict(environment),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        # A shell's background job ignores Ctrl-C; its children must not inherit that.
        setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE],
        setsigmask=[],
    )
    record = ProcessRecord.of(pid, launch)
    if record is None:
        _reap(pid)
        raise OSError(f"{Path(command[0]).name} ended at once")
    return record


def save(record: ProcessRecord, path: Path) -> None:
    """Writes `record` to `path`, all or nothing."""
    replace_file(path, json.dumps(asdict(record)).encode(), mode=0o600)


def load(path: Path) -> ProcessRecord | None:
    """The record in `path` if that process still runs, else None."""
    try:
        record = ProcessRecord(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None  # a file that we did not write says nothing about a process
    return record if record.alive() else None


def marked(stack_id: str, component: str | None = None) -> tuple[psutil.Process, ...]:
    """Living processes of a stack, or of one part of it; never ourselves."""
    found = []
    for process in psutil.process_iter():
        try:
            variables = process.environ()
            if variables.get(STACK_VARIABLE) != stack_id or process.pid == os.getpid():
                continue
            if component is not None and variables.get(COMPONENT_VARIABLE) != component:
                continue
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue  # it ended meanwhile, or belongs to another user: not ours
    return tuple(found)


def end(processes: Iterable[psutil.Process], timeout_s: float) -> None:
    """Asks the processes to end, waits until they really have, and kills those that do not."""
    left = list(processes)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    left = _wait(left, timeout_s)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    _wait(left, _KILL_WAIT_S)


def _wait(processes: list[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Those still running after at most `timeout_s`; ended children are reaped on the way."""
    deadline = time.monotonic() + timeout_s
    while True:
        processes = [process for process in processes if _runs(process)]
        if not processes or time.monotonic() >= deadline:
            return processes
        time.sleep(0.02)


def _runs(process: psutil.Process) -> bool:
    _reap(process.pid)
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _reap(pid: int) -> None:
    """Takes the exit status of a child of ours that has ended; others are none of our business."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _started_ticks(pid: int) -> int | None:
    """Field 22 of ``/proc/<pid>/stat``; None for a process that has ended or is a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The program's name stands in brackets and may itself hold brackets and blanks.
    state, *fields = text.rpartition(")")[2].split()
    if state in ("Z", "X"):
        _reap(pid)
        return None
    return int(fields[18])


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
