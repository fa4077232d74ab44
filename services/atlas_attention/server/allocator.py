"""Settings of glibc's allocator that keep freed memory from staying with the process."""

from __future__ import annotations

import ctypes

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # malloc.h

ARENAS = 2
"""Arenas that threads share. By default each of the many threads of a gRPC server may get an arena
of its own, and every arena keeps what was freed in it."""

LARGE_BYTES = 4 << 20
"""Blocks of at least this size return to the system when they are freed: slabs do, predictions of
one window do not."""


def tune_allocator() -> None:
    """Limit the arenas and fix the mmap threshold; call it before threads start.

    A fixed threshold also stops glibc from raising it to the largest block ever freed, after which
    slabs would stay resident for good. Without glibc (musl, macOS) nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, ARENAS)
        mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
