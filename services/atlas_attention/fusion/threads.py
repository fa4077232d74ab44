"""Runs a compiled kernel on several threads.

The kernels release the GIL, and their items are independent, so plain threads suffice. numba's own
`prange` is not used: on a machine without TBB or OpenMP its fallback ends the process when two
requests enter a parallel kernel at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from itertools import pairwise

Threads = int | Callable[[], int] | None
"""Number of threads of a kernel, 1 being the calling thread: the number itself, or a function that
returns it and is called whenever a kernel runs; None: one per available core."""

CHUNKS_PER_THREAD = 8
"""Items with an organ cost a hundred times as much as air; small chunks even that out."""


def available_threads() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


@cache
def _workers(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="kernel")


def parallel_for(kernel: Callable[[int, int], None], count: int, threads: Threads = None) -> None:
    """Calls ``kernel(first, last)`` so that every item of ``range(count)`` is covered exactly once.

    Args:
        kernel: works on items ``[first, last)``; called from several threads at once.
        threads: see `Threads`.
    """
    if callable(threads):
        threads = threads()
    threads = available_threads() if threads is None else threads
    if threads <= 1 or count <= 1:
        kernel(0, count)
        return
    chunks = min(count, threads * CHUNKS_PER_THREAD)
    edges = [count * i // chunks for i in range(chunks + 1)]
    jobs = [_workers(threads).submit(kernel, first, last) for first, last in pairwise(edges)]
    wait(jobs)
    for job in jobs:
        job.result()
