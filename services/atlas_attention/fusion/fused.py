"""Fusion of one block of soft predictions: checks of the input, lookup tables, and the result."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
from atlas_core.errors import InvalidInput, LimitExceeded
from numpy.typing import NDArray

from atlas_attention.fusion.agreement import Counts, no_counts
from atlas_attention.fusion.kernels import TILE, UNIT, fuse_tiles, mark_tiles
from atlas_attention.fusion.threads import Threads, parallel_for

MAX_MODELS = 16
"""More models would overflow the 16-bit sums of bytes and of fixed-point terms in the kernels."""


MAX_ORGANS = 255
"""As many as a label map holds. A kernel's scratch memory is 12 KB an organ, 3 MB in all."""


FINE_UNIT = 1 << 28
"""Fixed point of an entropy that is compared with a threshold: 16 models · 1/e · 2^28 < 2^31."""


SoftPredictions = NDArray[np.uint8]
"""Soft predictions ``[model, organ, z, y, x]``; p = v / 255."""


@dataclass(frozen=True)
class Fused:
    """What an ensemble predicts for one block of voxels.

    Attributes:
        attention: uint8 ``[organ, z, y, x]``; Eq. 4 = byte · `ATTENTION_SCALE`.
        mean: uint8 ``[organ, z, y, x]``; mean soft prediction = byte / 255, rounded half down, so
            that byte >= 128 if and only if the unrounded mean is above 0.5.
        label: uint8 ``[z, y, x]``; 1 + channel of the largest mean above 0.5, ties to the lower
            channel, else 0. Taken from the unrounded mean.
        written: bool ``[tile, organ]``: which tiles of `TILE` voxels may hold anything but zero;
            None: any may. Memory that is passed on as `out` for another result must not have been
            written to in between.
    """

    attention: NDArray[np.uint8]
    mean: NDArray[np.uint8]
    label: NDArray[np.uint8]
    written: NDArray[np.bool_] | None = None

    @property
    def slices(self) -> int:
        """Number of z-slices."""
        return int(self.label.shape[0])

    @classmethod
    def empty(cls, organs: int, rows: int, columns: int) -> Fused:
        """A result without slices."""
        return cls(
            np.zeros((organs, 0, rows, columns), np.uint8),
            np.zeros((organs, 0, rows, columns), np.uint8),
            np.zeros((0, rows, columns), np.uint8),
        )

    @classmethod
    def concatenated(cls, parts: list[Fused]) -> Fused:
        """`parts` (at least one) joined along z; if only one is not empty, that one itself."""
        filled = [part for part in parts if part.slices] or parts[:1]
        if len(filled) == 1:
            return filled[0]
        return cls(
            np.concatenate([part.attention for part in filled], axis=1),
            np.concatenate([part.mean for part in filled], axis=1),
            np.concatenate([part.label for part in filled], axis=0),
        )

    def copy(self) -> Fused:
        """A copy in memory of its own."""
        return Fused(self.attention.copy(), self.mean.copy(), self.label.copy())

    def from_slice(self, start: int) -> Fused:
        """Slices from `start` on, as views."""
        return Fused(self.attention[:, start:], self.mean[:, start:], self.label[start:])

    def to_slice(self, stop: int) -> Fused:
        """Slices below `stop`, as views."""
        return Fused(self.attention[:, :stop], self.mean[:, :stop], self.label[:stop])


def require_form(soft: SoftPredictions) -> None:
    """Refuses soft predictions in a form that the kernels cannot take.

    Raises:
        InvalidInput: another type or number of axes, no model, organ, row or column.
        LimitExceeded: more than `MAX_MODELS` models or `MAX_ORGANS` organs.
    """
    if soft.dtype != np.uint8 or soft.ndim != 5 or 0 in (*soft.shape[:2], *soft.shape[3:]):
        raise InvalidInput(
            "soft predictions have a wrong form",
            expected="uint8 [model, organ, z, y, x]",
            got=f"{soft.dtype} {list(soft.shape)}",
        )
    for what, count, most in (
        ("models", soft.shape[0], MAX_MODELS),
        ("organs", soft.shape[1], MAX_ORGANS),
    ):
        if count > most:
            raise LimitExceeded(f"too many {what} to fuse", expected=f"at most {most}", got=count)


def require_soft(soft: SoftPredictions) -> SoftPredictions:
    """`soft` as a C-contiguous uint8 array ``[model, organ, z, y, x]``; copied only if necessary.

    Raises:
        InvalidInput, LimitExceeded: see `require_form`.
    """
    require_form(soft)
    return np.ascontiguousarray(soft)


def require_same_width(first: SoftPredictions | None, soft: SoftPredictions) -> None:
    """Refuses a slab with other numbers of models, organs, rows or columns than the `first` one.

    Raises:
        InvalidInput: names both shapes.
    """
    if first is not None and (
        first.shape[:2] != soft.shape[:2] or first.shape[3:] != soft.shape[3:]
    ):
        raise InvalidInput(
            "a slab differs from the first of its volume in more than its number of slices",
            expected=f"[model, organ, z, y, x] like {list(first.shape)}",
            got=list(soft.shape),
        )


def entropy_terms(models: int, unit: int) -> NDArray[np.int64]:
    """One model's share of Eq. 2 for every byte: ``[256]``, round(unit · −p·ln p / models).

    p = v / 255 and 0 · ln 0 = 0. The sum of one entry per model is Uncertainty · unit; each entry
    is off by at most one half.
    """
    p = np.arange(256) / 255.0
    p[0] = 1.0  # ln 1 = 0 stands for the limit of p · ln p
    return np.asarray(np.rint(-p * np.log(p) * (unit / models)), dtype=np.int64)


def fusion_tables(models: int) -> tuple[NDArray[np.uint16], np.float32]:
    """How bytes become the fixed point of Eq. 4: one model's share of Eq. 2 per byte
    (`entropy_terms`), and the factor of sqrt(N·Σv² − (Σv)²) in Eq. 1."""
    return entropy_terms(models, UNIT).astype(np.uint16), np.float32(UNIT / (255.0 * models))


def mark_tables(
    models: int, min_inconsistency: float, min_uncertainty: float
) -> tuple[NDArray[np.int32], int, int]:
    """Integer tables and limits that decide whether a term is above its threshold.

    Returns:
        the entropy of each byte ``[256]``, in 1/`FINE_UNIT`; the limits that its sum over the
        models, and N·Σv² − (Σv)², must exceed.
    """
    # std > s ⇔ N·Σv² − (Σv)² > (255·N·s)²; the left side is an integer, and if the right side is
    # one too, rounding must not put the product just below it.
    return (
        entropy_terms(1, FINE_UNIT).astype(np.int32),
        int(min_uncertainty * models * FINE_UNIT),
        int((255 * models * min_inconsistency) ** 2 + 1e-6),
    )


def require_out(out: Fused, soft: SoftPredictions) -> None:
    """Refuses memory that does not fit the result of `soft`.

    Raises:
        InvalidInput: another type or shape, or not C-contiguous.
    """
    shape = soft.shape[1:]
    for what, volume, expected in (
        ("attention", out.attention, shape),
        ("mean", out.mean, shape),
        ("label", out.label, shape[1:]),
    ):
        if volume.dtype != np.uint8 or volume.shape != expected or not volume.flags.c_contiguous:
            raise InvalidInput(
                f"the memory for {what} does not fit the soft predictions",
                expected=f"C-contiguous uint8 {list(expected)}",
                got=f"{volume.dtype} {list(volume.shape)}",
            )


def fuse_block(
    soft: SoftPredictions,
    gates: NDArray[np.uint8] | None = None,
    *,
    out: Fused | None = None,
    counts: Counts | None = None,
    threads: Threads = None,
) -> Fused:
    """Eq. 1–4 over one block of voxels, in either reading.

    Args:
        soft: uint8 ``[model, organ, z, y, x]``.
        gates: None for reading `paper`. For reading `released` uint8 ``[organ, z, y, x]``,
            C-contiguous, with the bits `KEEP_INCONSISTENCY` and `KEEP_UNCERTAINTY`, neither set
            where all models predict zero; overlap then counts organs whose *mean* is above 0.5
            rather than organs for which any model is above 0.5. The array is overwritten with the
            attention.
        out: memory for the result, with any content; None: new memory. With gates, their array is
            used instead of its attention.
        counts: of the whole volume; those of this block are added.
        threads: see `threads.Threads`.

    Raises:
        InvalidInput, LimitExceeded: see `require_soft` and `require_out`.
    """
    soft = require_soft(soft)
    models, organs, *grid = soft.shape
    planes = soft.reshape(models, organs, -1)
    if out is None:
        # Fresh zero pages cost nothing until they are written, and most never are.
        attention = np.zeros((organs, *grid), np.uint8) if gates is None else gates
        mean, label = np.zeros((organs, *grid), np.uint8), np.zeros(grid, np.uint8)
        written = np.zeros((_tiles(planes), organs), np.bool_)
    else:
        attention = out.attention if gates is None else gates
        mean, label, written = out.mean, out.label, _written(out, planes)
    out = Fused(attention, mean, label, written)
    require_out(out, soft)
    flat = (attention.reshape(organs, -1), mean.reshape(organs, -1), label.reshape(-1))
    tables = fusion_tables(models)
    gated = gates is not None
    counts = no_counts(models, organs) if counts is None else counts
    adding = threading.Lock()

    def kernel(first: int, last: int) -> None:
        here = np.zeros_like(counts)
        fuse_tiles(planes, gated, written, tables, first, last, *flat, here)
        with adding:
            np.add(counts, here, out=counts)

    parallel_for(kernel, len(written), threads)
    return out


def _tiles(planes: NDArray[np.uint8]) -> int:
    return -(-planes.shape[2] // TILE)


def _written(out: Fused, planes: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which tiles of `out` may hold anything but zero, ``[tile, organ]``."""
    shape = (_tiles(planes), planes.shape[1])
    return np.ones(shape, np.bool_) if out.written is None else out.written


def mark_terms(
    soft: SoftPredictions,
    min_inconsistency: float,
    min_uncertainty: float,
    *,
    out: Fused | None = None,
    threads: Threads = None,
) -> NDArray[np.uint8]:
    """Which terms of Eq. 4 are above a threshold (reading `released`).

    Args:
        soft: uint8 ``[model, organ, z, y, x]``.
        min_inconsistency, min_uncertainty: in the units of Eq. 1 and 2; equal does not count.
        out: its attention becomes the result, with any content before; None: new memory.
        threads: see `threads.Threads`.

    Returns:
        uint8 ``[organ, z, y, x]`` with the bits `KEEP_INCONSISTENCY` and `KEEP_UNCERTAINTY`.

    Raises:
        InvalidInput, LimitExceeded: see `require_soft`.
    """
    soft = require_soft(soft)
    models, organs, *grid = soft.shape
    planes = soft.reshape(models, organs, -1)
    if out is None:
        gates = np.zeros((organs, *grid), np.uint8)
        written = np.zeros((_tiles(planes), organs), np.bool_)
    else:
        require_out(out, soft)
        gates, written = out.attention, _written(out, planes)
    marks = gates.reshape(organs, -1)
    entropy, least_entropy, least_spread = mark_tables(models, min_inconsistency, min_uncertainty)
    thresholds = np.int32(least_entropy), np.int32(least_spread)

    def kernel(first: int, last: int) -> None:
        mark_tiles(planes, written, entropy, *thresholds, first, last, marks)

    parallel_for(kernel, len(written), threads)
    return gates
