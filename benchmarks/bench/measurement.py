"""What every benchmark shares: the machine, repeated timings, peak memory, and the JSON line."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

GIB = 2**30

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated runs, in the order in which they were made."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def rounded(self) -> dict[str, Any]:
        """For the JSON line."""
        return {
            "median_s": round(self.median, 4),
            "all_s": [round(seconds, 4) for seconds in self.seconds],
        }


def timed(work: Callable[[], object], runs: int, *, warm_up: int = 1) -> Timing:
    """Runs `work` `warm_up` times unmeasured, so that nothing is compiled or loaded for the first
    time, and then `runs` times."""
    for _ in range(warm_up):
        work()
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return Timing(tuple(seconds))


def peak_bytes(pids: Iterable[int | str] = ("self",)) -> int:
    """The most resident memory that processes have had, each at its own worst moment, summed.

    The kernel's VmHWM: anonymous, file-backed and shared pages. Pages that two of the processes
    share count twice, so for several processes this is an upper bound.
    """
    return sum(_status_kib(pid, "VmHWM") for pid in pids) * 1024


def forget_peak(pids: Iterable[int]) -> None:
    """Sets the peaks back to what is resident now."""
    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time that processes have used so far, in user mode and in the kernel."""
    ticks = 0
    for pid in pids:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        # The program's name stands in brackets and may itself hold blanks.
        fields = stat.rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _status_kib(pid: int | str, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise LookupError(f"process {pid} says nothing of {field}: it has ended")


def in_fresh_process(work: Callable[..., ResultT], *arguments: object) -> tuple[ResultT, int]:
    """What `work` returns in a process of its own, and the most memory that process had, in bytes.

    `work` is a function of a module, so that the new process finds it by name.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_with_peak, work, arguments).result()


def _with_peak(work: Callable[..., ResultT], arguments: tuple[object, ...]) -> tuple[ResultT, int]:
    result = work(*arguments)
    return result, peak_bytes()


def machine(*packages: str) -> dict[str, Any]:
    """What the figures were taken on, and the versions of `packages`.

    The load average tells whether somebody else was at work when the benchmark began.
    """
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
        "load_average": round(os.getloadavg()[0], 2),
    }


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def say(text: str) -> None:
    """One line about what happens now, beside the result's way out."""
    print(text, file=sys.stderr, flush=True)


def report(benchmark: str, **fields: Any) -> None:
    """Prints the result as one JSON object: the last line of a benchmark."""
    print(json.dumps({"benchmark": benchmark, **fields}), flush=True)
