"""How glibc's heap is kept from growing beyond what the service needs at once."""

from __future__ import annotations

import ctypes

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # malloc.h

ARENAS = 2
"""Heaps that threads share. By default each of the many threads of a gRPC server may come to have
one of its own, and each keeps what was freed in it."""

LARGE_BYTES = 4 << 20
"""Blocks from here on go back to the system when they are freed: slabs, not predictions."""


def bound_heap() -> None:
    """To be called before threads start. Elsewhere than with glibc (musl, macOS) nothing changes.

    Fixing the threshold also ends glibc's habit of raising it to the largest block ever freed,
    after which slabs stay resident for good.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, ARENAS)
        mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
