"""What an attention map is in bytes, and the one pass over the bytes that makes it.

Soft predictions p come as bytes v = round(255 · p). Attention leaves as bytes, 136 to the unit: the
largest value of Eq. 4 is 0.5 (inconsistency) + 1/e (uncertainty) + 1 (overlap) = 1.868, and
1.868 · 136 = 254.05 fits a byte. The logarithm of Eq. 2 is the natural one.

Between input and output everything is integer: terms are kept in `FRACTION_BITS` more bits than the
output, so that the largest sum still fits 16 bits. Integer sums do not depend on the order of
models, slabs or threads, hence neither do the results, to the bit. (The one square root is of an
integer below 2^24, exact in float32 and rounded by IEEE 754 alike everywhere.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from atlas_core.errors import InvalidInput, LimitExceeded
from numba import njit
from numpy.typing import NDArray

from atlas_attention.tiles import Threads, over_tiles

ATTENTION_LEVELS = 136
"""Steps of the attention byte per unit of Eq. 4; one more would overflow the byte at its
maximum."""

ATTENTION_SCALE = 1.0 / ATTENTION_LEVELS
"""Attention = byte · ATTENTION_SCALE."""

FRACTION_BITS = 8
"""Binary digits kept below the output's last one: 254.05 · 2^8 = 65 037 is the most 16 bits
hold."""

UNIT = ATTENTION_LEVELS << FRACTION_BITS
"""1.0 of Eq. 4 in fixed point."""

HALF_STEP = 1 << (FRACTION_BITS - 1)
"""Half of the output's last digit: rounding half up is adding it and cutting off."""

HALF_BYTE = 128
"""The smallest byte above probability one half: v / 255 > 0.5 if and only if v >= 128."""

MAX_MODELS = 16
"""More would overflow the 16-bit sums of bytes and of fixed-point terms that the kernels rely
on."""

MAX_ORGANS = 64
"""Bounds the scratch memory of a kernel; label maps could carry 255."""

TILE = 16384
"""Voxels looked at together: a run of air costs one long sequential read per plane, and all planes
of a tile (27 for 3 models and 9 organs) stay in the L2 cache."""

BLOCK = 512
"""Voxels worked on together inside a tile: scratch rows of this length stay in the L1 cache."""

WORDS = 64
"""Words of eight bytes that are looked at together for something else than zero."""

FINE_UNIT = 1 << 28
"""Fixed point of an entropy that is compared with a threshold: 16 models · 1/e · 2^28 < 2^31."""

KEEP_INCONSISTENCY = 1
KEEP_UNCERTAINTY = 2
"""Bits of a gate byte (reading `released`): which terms of Eq. 4 a voxel keeps."""

Soft = NDArray[np.uint8]
"""Soft predictions ``[model, organ, z, y, x]``; p = v / 255."""


@dataclass(frozen=True)
class Fused:
    """What an ensemble says of one block of voxels.

    Attributes:
        attention: uint8 ``[organ, z, y, x]``; Eq. 4 = byte · `ATTENTION_SCALE`.
        mean: uint8 ``[organ, z, y, x]``; mean soft prediction = byte / 255, rounded half down, so
        that
            byte >= 128 says exactly that the unrounded mean is above 0.5.
        label: uint8 ``[z, y, x]``; 1 + channel of the largest mean above 0.5, ties to the lower
            channel, else 0. Taken from the unrounded mean.
        written: bool ``[tile, organ]``: the tiles of `TILE` voxels that may hold something else
            than zero; None: any may. Whoever offers this memory for another result must not have
            written to it.
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
        """No slices at all."""
        return cls(
            np.zeros((organs, 0, rows, columns), np.uint8),
            np.zeros((organs, 0, rows, columns), np.uint8),
            np.zeros((0, rows, columns), np.uint8),
        )

    @classmethod
    def concatenated(cls, parts: list[Fused]) -> Fused:
        """`parts` (at least one), one above the other along z; a single one that is not empty as
        is."""
        filled = [part for part in parts if part.slices] or parts[:1]
        if len(filled) == 1:
            return filled[0]
        return cls(
            np.concatenate([part.attention for part in filled], axis=1),
            np.concatenate([part.mean for part in filled], axis=1),
            np.concatenate([part.label for part in filled], axis=0),
        )

    def copy(self) -> Fused:
        """The same in memory of its own."""
        return Fused(self.attention.copy(), self.mean.copy(), self.label.copy())

    def from_slice(self, start: int) -> Fused:
        """Slices from `start` on, as views."""
        return Fused(self.attention[:, start:], self.mean[:, start:], self.label[start:])


def require_form(soft: Soft) -> None:
    """Refuses what is no soft predictions that the kernels can take.

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


def require_soft(soft: Soft) -> Soft:
    """`soft` as a C-contiguous uint8 array ``[model, organ, z, y, x]``; copied only if it must be.

    Raises:
        InvalidInput, LimitExceeded: see `require_form`.
    """
    require_form(soft)
    return np.ascontiguousarray(soft)


def require_same_width(first: Soft | None, soft: Soft) -> None:
    """Refuses a slab that has other models, organs, rows or columns than the `first` of its volume.

    Raises:
        InvalidInput: naming both shapes.
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

    p = v / 255 and 0 · ln 0 = 0. Summing one entry per model gives Uncertainty · unit; each entry
    is off by at most one half.
    """
    p = np.arange(256) / 255.0
    p[0] = 1.0  # ln 1 = 0 stands for the limit of p · ln p
    return np.asarray(np.rint(-p * np.log(p) * (unit / models)), dtype=np.int64)


def fusion_tables(models: int) -> tuple[NDArray[np.uint16], np.float32]:
    """What turns bytes into the fixed point of Eq. 4: one model's share of Eq. 2 per byte
    (`entropy_terms`), and the factor of sqrt(N·Σv² − (Σv)²) in Eq. 1."""
    return entropy_terms(models, UNIT).astype(np.uint16), np.float32(UNIT / (255.0 * models))


def mark_tables(
    models: int, min_inconsistency: float, min_uncertainty: float
) -> tuple[NDArray[np.int32], int, int]:
    """What tells whether a term is above its threshold, in integers.

    Returns:
        one model's share of the entropy per byte ``[256]``, in 1/`FINE_UNIT`; what Σ over the
        models of it, and what N·Σv² − (Σv)², must be above.
    """
    # std > s ⇔ N·Σv² − (Σv)² > (255·N·s)²; the left side is an integer, and where the right side is
    # one too it must not fall below it by the rounding of the product.
    return (
        entropy_terms(1, FINE_UNIT).astype(np.int32),
        int(min_uncertainty * models * FINE_UNIT),
        int((255 * models * min_inconsistency) ** 2 + 1e-6),
    )


def require_out(out: Fused, soft: Soft) -> None:
    """Refuses memory that cannot take the result of `soft`.

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
    soft: Soft,
    gates: NDArray[np.uint8] | None = None,
    *,
    out: Fused | None = None,
    threads: Threads = None,
) -> Fused:
    """Eq. 1–4 over one block of voxels, in either reading.

    Args:
        soft: uint8 ``[model, organ, z, y, x]``.
        gates: None for reading `paper`. For reading `released` uint8 ``[organ, z, y, x]``,
            C-contiguous, with the bits `KEEP_INCONSISTENCY` and `KEEP_UNCERTAINTY`, none set where
            all models say zero; overlap then counts organs whose *mean* is above 0.5 rather than
            organs that any one model is sure of. The array is overwritten: it becomes the
            attention.
        out: memory for the result, whatever it holds; None: new memory. With gates, their array
            takes the place of its attention.
        threads: see `tiles.Threads`.

    Raises:
        InvalidInput, LimitExceeded: see `require_soft` and `require_out`.
    """
    soft = require_soft(soft)
    models, organs, *grid = soft.shape
    planes = soft.reshape(models, organs, -1)
    if out is None:
        # Fresh zero pages cost nothing until they are written, and most of them never are.
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

    def kernel(first: int, last: int) -> None:
        _fuse_tiles(planes, gated, written, tables, first, last, *flat)

    over_tiles(kernel, len(written), threads)
    return out


def _tiles(planes: NDArray[np.uint8]) -> int:
    return -(-planes.shape[2] // TILE)


def _written(out: Fused, planes: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which tiles of `out` may hold something else than zero, ``[tile, organ]``."""
    form = (_tiles(planes), planes.shape[1])
    return np.ones(form, np.bool_) if out.written is None else out.written


def mark_terms(
    soft: Soft,
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
        out: its attention becomes the result, whatever it holds; None: new memory.
        threads: see `tiles.Threads`.

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
        _mark_tiles(planes, written, entropy, *thresholds, first, last, marks)

    over_tiles(kernel, len(written), threads)
    return gates


# numba recompiles a cached kernel when the file that holds it changes, not when another file that
# it calls or takes a constant from does: every kernel here calls and reads this file only.


@njit(cache=True, nogil=True)
def _is_zero(planes, organ, start, stop):  # type: ignore[no-untyped-def]
    """Whether no model says anything of `organ` in voxels ``[start, stop)``."""
    whole = start + (stop - start) // 8 * 8
    for n in range(planes.shape[0]):
        # Eight bytes at a time: twice the bytes a second of a loop over single ones; in blocks, so
        # that what is full of an organ is left early.
        words = planes[n, organ, start:whole].view(np.uint64)
        for block in range(0, words.size, WORDS):
            seen = np.uint64(0)
            for i in range(block, min(block + WORDS, words.size)):
                seen |= words[i]
            if seen:
                return False
        rest = planes[n, organ, whole:stop]
        for i in range(rest.size):
            if rest[i]:
                return False
    return True


@njit(cache=True, nogil=True)
def _sum_bytes(planes, organ, start, stop, total, squares):  # type: ignore[no-untyped-def]
    """Σv and Σv² over the models, per voxel of ``[start, stop)``.

    The first three models are taken at once, which saves passes for the usual ensemble of three.
    """
    models = planes.shape[0]
    a = planes[0, organ, start:stop]
    b = planes[min(1, models - 1), organ, start:stop]
    c = planes[min(2, models - 1), organ, start:stop]
    if models >= 3:
        for i in range(a.size):
            total[i] = np.uint16(a[i]) + np.uint16(b[i]) + np.uint16(c[i])
        for i in range(a.size):
            squares[i] = (
                np.uint32(a[i]) * np.uint32(a[i])
                + np.uint32(b[i]) * np.uint32(b[i])
                + np.uint32(c[i]) * np.uint32(c[i])
            )
    else:
        for i in range(a.size):
            total[i] = a[i]
        for i in range(a.size):
            squares[i] = np.uint32(a[i]) * np.uint32(a[i])
    for n in range(3 if models >= 3 else 1, models):
        row = planes[n, organ, start:stop]
        for i in range(row.size):
            total[i] += np.uint16(row[i])
        for i in range(row.size):
            squares[i] += np.uint32(row[i]) * np.uint32(row[i])


@njit(cache=True, nogil=True)
def _sum_terms(planes, organ, start, stop, table, terms):  # type: ignore[no-untyped-def]
    """Σ table[v] over the models, per voxel of ``[start, stop)``."""
    models = planes.shape[0]
    a = planes[0, organ, start:stop]
    b = planes[min(1, models - 1), organ, start:stop]
    c = planes[min(2, models - 1), organ, start:stop]
    if models >= 3:
        for i in range(a.size):
            terms[i] = table[a[i]] + table[b[i]] + table[c[i]]
    else:
        for i in range(a.size):
            terms[i] = table[a[i]]
    for n in range(3 if models >= 3 else 1, models):
        row = planes[n, organ, start:stop]
        for i in range(row.size):
            terms[i] += table[row[i]]


@njit(cache=True, nogil=True)
def _peak(planes, organ, start, stop, peak):  # type: ignore[no-untyped-def]
    """The largest v of any model, per voxel of ``[start, stop)``."""
    row = planes[0, organ, start:stop]
    for i in range(row.size):
        peak[i] = row[i]
    for n in range(1, planes.shape[0]):
        row = planes[n, organ, start:stop]
        for i in range(row.size):
            peak[i] = max(peak[i], row[i])


@njit(cache=True, nogil=True)
def _clear(attention, mean, organ, start, stop, gated):  # type: ignore[no-untyped-def]
    """Nothing is said of `organ` here; gates are zero then already."""
    mean[organ, start:stop] = 0
    if not gated:
        attention[organ, start:stop] = 0


@njit(cache=True, nogil=True)
def _fuse_tiles(  # type: ignore[no-untyped-def]
    planes, gated, written, tables, first, last, attention, mean, label
):
    """Tiles ``[first, last)`` of `planes` ``[model, organ, voxel]``.

    What `written` ``[tile, organ]`` does not name is zero, and is not written again.
    """
    _, organs, voxels = planes.shape
    in_tile = np.empty(organs, np.int64)
    scratch = (
        np.empty(BLOCK, np.uint16),  # Σv
        np.empty(BLOCK, np.uint32),  # Σv²
        np.empty(BLOCK, np.uint8),  # max v
        np.empty(BLOCK, np.uint32),  # largest Σv of any organ so far, and whose
        np.empty(BLOCK, np.uint8),  # organs that claim the voxel (Eq. 3)
        np.empty((organs, BLOCK), np.uint16),  # Eq. 1 + Eq. 2 in fixed point
        np.empty((organs, BLOCK), np.uint8),  # whether the organ claims the voxel
        np.empty(organs, np.int64),  # organs met in this block
    )
    for tile in range(first, last):
        tile_start = tile * TILE
        tile_stop = min(voxels, tile_start + TILE)
        count = 0
        named = False
        for c in range(organs):
            named |= written[tile, c]
            if not _is_zero(planes, c, tile_start, tile_stop):
                in_tile[count] = c
                count += 1
            elif written[tile, c]:
                _clear(attention, mean, c, tile_start, tile_stop, gated)
                written[tile, c] = False
        if count == 0:
            if named:
                label[tile_start:tile_stop] = 0
            continue
        for start in range(tile_start, tile_stop, BLOCK):
            stop = min(tile_stop, start + BLOCK)
            _fuse_run(
                planes, gated, written[tile], named, tables, in_tile[:count], start, stop, scratch,
                attention, mean, label,
            )  # fmt: skip
        for c in in_tile[:count]:
            written[tile, c] = True


@njit(cache=True, nogil=True)
def _fuse_run(  # type: ignore[no-untyped-def]
    planes, gated, written, named, tables, candidates, start, stop, scratch, attention, mean, label
):
    """One run of voxels: every candidate organ first, then Eq. 3, which needs all.

    `written` ``[organ]``: whose outputs may hold something else than zero; `named`: so may the
    label.
    """
    entropy, deviation = tables
    length = stop - start
    total = scratch[0][:length]
    squares = scratch[1][:length]
    peak = scratch[2][:length]
    best = scratch[3][:length]
    claims = scratch[4][:length]
    met = scratch[7]
    models = planes.shape[0]
    half_sum = np.uint16(255 * models // 2)  # Σv above it ⇔ mean above 0.5, for odd 255·N too
    claims[:] = 0
    best[:] = 0
    count = 0
    for organ in candidates:
        if _is_zero(planes, organ, start, stop):
            if written[organ]:
                _clear(attention, mean, organ, start, stop, gated)
            continue
        term = scratch[5][count, :length]
        claim = scratch[6][count, :length]
        met[count] = organ
        count += 1
        _sum_bytes(planes, organ, start, stop, total, squares)
        _sum_terms(planes, organ, start, stop, entropy, term)
        if gated:
            gate = attention[organ, start:stop]
            _add_gated_deviation(total, squares, models, deviation, gate, term)
            for i in range(length):
                claim[i] = total[i] > half_sum
        else:
            _add_deviation(total, squares, models, deviation, term)
            _peak(planes, organ, start, stop, peak)
            for i in range(length):
                claim[i] = peak[i] >= HALF_BYTE
        for i in range(length):
            claims[i] += claim[i]
        _write_mean(total, models, mean[organ, start:stop])
        # Larger sum first, lower channel first: one maximum decides both.
        name = np.uint32(255 - organ)
        for i in range(length):
            best[i] = max(best[i], np.uint32(np.uint32(total[i]) << 8 | name))
    if count or named:
        labels = label[start:stop]
        for i in range(length):
            chosen = np.uint8(0) - np.uint8(best[i])  # 255 − organ → organ + 1
            labels[i] = chosen if (best[i] >> 8) > half_sum else np.uint8(0)
    for k in range(count):
        _write_attention(
            scratch[5][k, :length], scratch[6][k, :length], claims, attention[met[k], start:stop]
        )


@njit(cache=True, nogil=True)
def _write_mean(total, models, row):  # type: ignore[no-untyped-def]
    """Σv / N rounded half down: floor((2·Σv + N − 1) / 2N).

    Half a unit is added to the numerator, so that no quotient lies nearer to a whole number than
    1/64 (N up to 16): float32, off by less than 1e-4 here, cannot cross it (tested for every sum).
    """
    scale = np.float32(1.0 / models)
    offset = np.float32((models - 0.5) / (2.0 * models))
    for i in range(row.size):
        row[i] = np.uint8(np.int32(np.float32(total[i]) * scale + offset))


@njit(cache=True, nogil=True)
def _add_deviation(total, squares, models, deviation, term):  # type: ignore[no-untyped-def]
    """Adds Eq. 1 in fixed point, and half a step of the output for its rounding."""
    for i in range(term.size):
        v = np.float32(total[i])
        spread = np.float32(models) * np.float32(np.int32(squares[i])) - v * v
        term[i] += np.uint16(np.int32(np.sqrt(spread) * deviation)) + np.uint16(HALF_STEP)


@njit(cache=True, nogil=True)
def _add_gated_deviation(total, squares, models, deviation, gate, term):  # type: ignore[no-untyped-def]
    """The same for reading `released`: each of the two terms only where its gate is open."""
    for i in range(term.size):
        v = np.float32(total[i])
        spread = np.float32(models) * np.float32(np.int32(squares[i])) - v * v
        inconsistency = np.uint16(np.int32(np.sqrt(spread) * deviation))
        kept = term[i] if gate[i] & KEEP_UNCERTAINTY else np.uint16(0)
        kept += inconsistency if gate[i] & KEEP_INCONSISTENCY else np.uint16(0)
        term[i] = kept + np.uint16(HALF_STEP)


@njit(cache=True, nogil=True)
def _write_attention(term, claimed, claims, row):  # type: ignore[no-untyped-def]
    """Adds Eq. 3; the half step is in `term` already, so that cutting off rounds half up."""
    for i in range(row.size):
        overlap = np.uint16(UNIT) if (claimed[i] != 0) & (claims[i] > 1) else np.uint16(0)
        row[i] = np.uint8(np.uint16(term[i] + overlap) >> FRACTION_BITS)


@njit(cache=True, nogil=True)
def _mark_tiles(  # type: ignore[no-untyped-def]
    planes, written, entropy, least_entropy, least_spread, first, last, gates
):
    """Tiles ``[first, last)`` of `planes` ``[model, organ, voxel]``; what `written` ``[tile,
    organ]`` does not name is zero in `gates`."""
    models, organs, voxels = planes.shape
    total = np.empty(BLOCK, np.uint16)
    squares = np.empty(BLOCK, np.uint32)
    terms = np.empty(BLOCK, np.int32)
    for tile in range(first, last):
        tile_stop = min(voxels, (tile + 1) * TILE)
        for organ in range(organs):
            if written[tile, organ]:
                gates[organ, tile * TILE : tile_stop] = 0
            if _is_zero(planes, organ, tile * TILE, tile_stop):
                continue
            for start in range(tile * TILE, tile_stop, BLOCK):
                stop = min(tile_stop, start + BLOCK)
                if _is_zero(planes, organ, start, stop):
                    continue
                _sum_bytes(planes, organ, start, stop, total, squares)
                _sum_terms(planes, organ, start, stop, entropy, terms)
                gate = gates[organ, start:stop]
                for i in range(stop - start):
                    v = np.float32(total[i])
                    spread = np.float32(models) * np.float32(np.int32(squares[i])) - v * v
                    kept = np.uint8(KEEP_INCONSISTENCY) if spread > least_spread else np.uint8(0)
                    if terms[i] > least_entropy:
                        kept |= np.uint8(KEEP_UNCERTAINTY)
                    gate[i] = kept
