"""How an attention map is encoded in bytes, and the one pass over the bytes that computes it.

Input: soft predictions p as bytes v = round(255 · p). Output: attention as bytes, 136 per unit: the
largest value of Eq. 4 is 0.5 (inconsistency) + 1/e (uncertainty) + 1 (overlap) = 1.868, and
1.868 · 136 = 254.05 fits a byte. The logarithm of Eq. 2 is the natural one.

In between all arithmetic is in integers: terms have `FRACTION_BITS` more bits than the output, so
that the largest sum still fits 16 bits. Integer sums do not depend on the order of models, slabs or
threads, so neither do the results, to the bit. (The only square root is that of an integer below
2^24, which float32 holds exactly; IEEE 754 defines how it is rounded.)
"""

from __future__ import annotations

import numpy as np
from numba import njit

ATTENTION_LEVELS = 136
"""Steps of the attention byte per unit of Eq. 4; with one more its maximum would overflow."""

ATTENTION_SCALE = 1.0 / ATTENTION_LEVELS
"""Attention = byte · ATTENTION_SCALE."""

ATTENDED_FROM = 28
"""The smallest byte of an attention of at least 0.2: from there on a voxel of the reading `paper`
counts as attended. The reading `released` has its thresholds in it: every voxel above 0 does."""

FRACTION_BITS = 8
"""Binary digits below the last one of the output: 254.05 · 2^8 = 65 037 still fits 16 bits."""

UNIT = ATTENTION_LEVELS << FRACTION_BITS
"""1.0 of Eq. 4 in fixed point."""

HALF_STEP = 1 << (FRACTION_BITS - 1)
"""Half of the last digit of the output: adding it and truncating rounds half up."""

HALF_BYTE = 128
"""The smallest byte above probability one half: v / 255 > 0.5 if and only if v >= 128."""


TILE = 16384
"""Voxels checked for zero together: a run of air costs one long sequential read per plane, and all
planes of a tile (27 for 3 models and 9 organs) stay in the L2 cache."""

BLOCK = 4096
"""Voxels computed together within a tile: scratch rows of this length stay in the L2 cache."""

WORDS = 128
"""Words of eight bytes that are checked for zero together."""


COUNTED_WORDS = 32
"""Words of eight bytes whose bytes are counted together: 3 models · 2 · 255 · 32 fits 16 bits,
and loops of a power of two leave no rest for slower code."""


KEEP_INCONSISTENCY = 1
KEEP_UNCERTAINTY = 2
"""Bits of a gate byte (reading `released`): which terms of Eq. 4 a voxel keeps."""


# numba recompiles a cached kernel when its own file changes, but not when a file does from which it
# takes functions or constants; so the kernels here use nothing from other files.


@njit(cache=True, nogil=True)
def _or_words(words):  # type: ignore[no-untyped-def]
    """All words together. A function of its own, whose loop has no other bound than the words: so
    it becomes one of wide registers, three times as fast."""
    seen = np.uint64(0)
    for i in range(words.size):
        seen |= words[i]
    return seen


@njit(cache=True, nogil=True)
def _is_zero(planes, organ, start, stop):  # type: ignore[no-untyped-def]
    """Whether all models predict zero for `organ` in voxels ``[start, stop)``."""
    whole = start + (stop - start) // 8 * 8
    for n in range(planes.shape[0]):
        # Eight bytes at a time: twice as fast as a loop over single bytes; in blocks, so that the
        # loop ends early where there is an organ.
        words = planes[n, organ, start:whole].view(np.uint64)
        for block in range(0, words.size, WORDS):
            if _or_words(words[block : block + WORDS]):
                return False
        rest = planes[n, organ, whole:stop]
        for i in range(rest.size):
            if rest[i]:
                return False
    return True


@njit(cache=True, nogil=True)
def _sum_bytes(planes, organ, start, stop, total, squares):  # type: ignore[no-untyped-def]
    """Σv and Σv² over the models, per voxel of ``[start, stop)``.

    The first three models are added in one pass, which suits the usual ensemble of three.
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
def _sum_three(planes, organ, start, stop, total, half_spread):  # type: ignore[no-untyped-def]
    """Of three models Σv, and half of 3·Σv² − (Σv)², per voxel of ``[start, stop)``.

    With d = v1 − v2 and e = v2 − v3 that half is d² + d·e + e², at most 255²: it fits 16 bits, and
    a register holds twice as many as of the sums of squares.
    """
    a = planes[0, organ, start:stop]
    b = planes[1, organ, start:stop]
    c = planes[2, organ, start:stop]
    for i in range(a.size):
        total[i] = np.uint16(a[i]) + np.uint16(b[i]) + np.uint16(c[i])
    for i in range(a.size):
        d = np.uint16(a[i]) - np.uint16(b[i])  # modulo 2^16, as all that follows
        e = np.uint16(b[i]) - np.uint16(c[i])
        half_spread[i] = np.uint16(d * d + d * e + e * e)


@njit(cache=True, nogil=True)
def _sum_terms(planes, organ, start, stop, table, terms):  # type: ignore[no-untyped-def]
    """Σ table[v] over the models, per voxel of ``[start, stop)``."""
    models = planes.shape[0]
    if models >= 3:
        begin = (stop - start) // 8 * 8
        whole = start + begin
        a = planes[0, organ, start:whole].view(np.uint64)
        b = planes[1, organ, start:whole].view(np.uint64)
        c = planes[2, organ, start:whole].view(np.uint64)
        _sum_terms_of_three(a, b, c, table, terms)
        for i in range(begin, stop - start):
            terms[i] = (
                table[planes[0, organ, start + i]]
                + table[planes[1, organ, start + i]]
                + table[planes[2, organ, start + i]]
            )
    else:
        row = planes[0, organ, start:stop]
        for i in range(row.size):
            terms[i] = table[row[i]]
    for n in range(3 if models >= 3 else 1, models):
        row = planes[n, organ, start:stop]
        for i in range(row.size):
            terms[i] += table[row[i]]


@njit(cache=True, nogil=True)
def _sum_terms_of_three(a, b, c, table, terms):  # type: ignore[no-untyped-def]
    """The words of three models: what limits this is how much is loaded, so bytes come eight at a
    time."""
    byte = np.uint64(255)
    for w in range(a.size):
        x, y, z = a[w], b[w], c[w]
        for k in range(8):
            shift = np.uint64(8 * k)
            terms[8 * w + k] = (
                table[(x >> shift) & byte] + table[(y >> shift) & byte] + table[(z >> shift) & byte]
            )


@njit(cache=True, nogil=True)
def _claims(planes, organ, start, stop, claim):  # type: ignore[no-untyped-def]
    """Whether any model exceeds one half, per voxel of ``[start, stop)``, as 0 or 1: the highest
    bit of a byte."""
    models = planes.shape[0]
    a = planes[0, organ, start:stop]
    b = planes[min(1, models - 1), organ, start:stop]
    c = planes[min(2, models - 1), organ, start:stop]
    for i in range(a.size):
        claim[i] = (a[i] | b[i] | c[i]) >> 7
    for n in range(3, models):
        row = planes[n, organ, start:stop]
        for i in range(row.size):
            claim[i] |= row[i] >> 7


@njit(cache=True, nogil=True)
def _clear(attention, mean, organ, start, stop, gated):  # type: ignore[no-untyped-def]
    """Sets the outputs of `organ` to zero; gates are zero already."""
    mean[organ, start:stop] = 0
    if not gated:
        attention[organ, start:stop] = 0


@njit(cache=True, nogil=True)
def fuse_tiles(  # type: ignore[no-untyped-def]
    planes, gated, written, tables, first, last, attention, mean, label, counts
):
    """Tiles ``[first, last)`` of `planes` ``[model, organ, voxel]``.

    Outputs whose `written` ``[tile, organ]`` is False are zero, and are not written again. To
    `counts` ``[organ, k]`` is added what `agreement.Counts` says.
    """
    _, organs, voxels = planes.shape
    in_tile = np.empty(organs, np.int64)
    scratch = (
        np.empty(BLOCK, np.uint16),  # Σv
        np.empty(BLOCK, np.uint32),  # Σv²
        np.empty(BLOCK, np.uint32),  # largest Σv of any organ so far, and which organ
        np.empty(BLOCK, np.uint8),  # organs that claim the voxel (Eq. 3)
        np.empty((organs, BLOCK), np.uint16),  # Eq. 1 + Eq. 2 in fixed point
        np.empty((organs, BLOCK), np.uint8),  # whether the organ claims the voxel
        np.empty(organs, np.int64),  # organs that occur in this block
        np.empty(BLOCK, np.uint16),  # half of 3·Σv² − (Σv)², of three models
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
            _count(planes, c, tile_start, tile_stop, counts[c])


@njit(cache=True, nogil=True)
def _fuse_run(  # type: ignore[no-untyped-def]
    planes, gated, written, named, tables, candidates, start, stop, scratch, attention, mean, label
):
    """One run of voxels: each candidate organ first, then Eq. 3, which needs all of them.

    `written` ``[organ]``: whose outputs may hold anything but zero; `named`: whether the label may
    too.
    """
    entropy, deviation = tables
    length = stop - start
    total = scratch[0][:length]
    squares = scratch[1][:length]
    best = scratch[2][:length]
    claims = scratch[3][:length]
    met = scratch[6]
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
        term = scratch[4][count, :length]
        claim = scratch[5][count, :length]
        met[count] = organ
        count += 1
        _sum_terms(planes, organ, start, stop, entropy, term)
        if gated:
            gate = attention[organ, start:stop]
            _sum_bytes(planes, organ, start, stop, total, squares)
            _add_gated_deviation(total, squares, models, deviation, gate, term)
            for i in range(length):
                claim[i] = total[i] > half_sum
        else:
            if models == 3:  # the usual ensemble
                half_spread = scratch[7][:length]
                _sum_three(planes, organ, start, stop, total, half_spread)
                _add_deviation_of_three(half_spread, deviation, term)
            else:
                _sum_bytes(planes, organ, start, stop, total, squares)
                _add_deviation(total, squares, models, deviation, term)
            _claims(planes, organ, start, stop, claim)
        _add_claims(claim, claims)
        _write_mean(total, models, mean[organ, start:stop])
        _keep_best(total, organ, best)
    if count or named:
        _write_label(best, half_sum, label[start:stop])
    for k in range(count):
        _write_attention(
            scratch[4][k, :length], scratch[5][k, :length], claims, attention[met[k], start:stop]
        )


# Short loops have functions of their own: within `_fuse_run` they were not widened.


@njit(cache=True, nogil=True)
def _add_claims(claim, claims):  # type: ignore[no-untyped-def]
    for i in range(claim.size):
        claims[i] += claim[i]


@njit(cache=True, nogil=True)
def _keep_best(total, organ, best):  # type: ignore[no-untyped-def]
    """Larger sum first, then lower channel: one maximum decides both."""
    name = np.uint32(255 - organ)
    for i in range(total.size):
        best[i] = max(best[i], np.uint32(np.uint32(total[i]) << 8 | name))


@njit(cache=True, nogil=True)
def _write_label(best, half_sum, label):  # type: ignore[no-untyped-def]
    for i in range(best.size):
        chosen = np.uint8(0) - np.uint8(best[i])  # 255 − organ → organ + 1
        label[i] = chosen if (best[i] >> 8) > half_sum else np.uint8(0)


@njit(cache=True, nogil=True)
def _count(planes, organ, start, stop, counts):  # type: ignore[no-untyped-def]
    """Adds voxels ``[start, stop)`` to the `counts` ``[k]`` of one organ; see `agreement.Counts`.

    Eight bytes at a time: p > 0.5 is the highest bit of a byte. The parts of a word are added up
    before they overflow: `COUNTED_WORDS` ones fit 8 bits, and as many pairs of bytes 16.
    """
    models = planes.shape[0]
    whole = start + (stop - start) // 8 * 8
    if models == 3:  # the usual ensemble in one pass
        a = planes[0, organ, start:whole].view(np.uint64)
        b = planes[1, organ, start:whole].view(np.uint64)
        c = planes[2, organ, start:whole].view(np.uint64)
        _count_three(a, b, c, counts)
    else:
        at = models
        for n in range(models):
            a = planes[n, organ, start:whole].view(np.uint64)
            counts[-1] += _sum_above(a, a, counts[n : n + 1])
            for m in range(n + 1, models):
                b = planes[m, organ, start:whole].view(np.uint64)
                _sum_above(a, b, counts[at : at + 1])
                at += 1
    for i in range(whole, stop):
        at = models
        for n in range(models):
            v = planes[n, organ, i]
            counts[n] += v >> 7
            counts[-1] += v
            for m in range(n + 1, models):
                counts[at] += (v & planes[m, organ, i]) >> 7
                at += 1
    if models == 1:
        row = planes[0, organ, start:stop]
        within = np.uint32(0)
        for i in range(row.size):
            within += np.uint32(row[i]) if row[i] >= HALF_BYTE else np.uint32(0)
        counts[1] += within


@njit(cache=True, nogil=True)
def _sum_above(a, b, above):  # type: ignore[no-untyped-def]
    """Adds to `above` ``[1]`` in how many bytes of the words `a` and `b` both exceed one half;
    returns the sum of the bytes of `a`."""
    ones = np.uint64(0x0101010101010101)
    even = np.uint64(0x00FF00FF00FF00FF)
    total = np.int64(0)
    for block in range(0, a.size, COUNTED_WORDS):
        both = np.uint64(0)
        sums = np.uint64(0)
        for i in range(block, min(block + COUNTED_WORDS, a.size)):
            both += ((a[i] & b[i]) >> np.uint64(7)) & ones
            sums += (a[i] & even) + ((a[i] >> np.uint64(8)) & even)
        above[0] += _add_bytes(both)
        total += _add_shorts(sums)
    return total


@njit(cache=True, nogil=True)
def _count_three(a, b, c, counts):  # type: ignore[no-untyped-def]
    """The words of three models."""
    for block in range(0, a.size, COUNTED_WORDS):
        x = a[block : block + COUNTED_WORDS]
        y = b[block : block + COUNTED_WORDS]
        z = c[block : block + COUNTED_WORDS]
        in_x, in_y, in_z, in_xy, in_xz, in_yz = _above_of_three(x, y, z)
        counts[0] += _add_bytes(in_x)
        counts[1] += _add_bytes(in_y)
        counts[2] += _add_bytes(in_z)
        counts[3] += _add_bytes(in_xy)
        counts[4] += _add_bytes(in_xz)
        counts[5] += _add_bytes(in_yz)
        counts[6] += _add_shorts(_sum_of_three(x, y, z))


# Of their own, as `_or_words` is: more than twice as fast.


@njit(cache=True, nogil=True)
def _above_of_three(a, b, c):  # type: ignore[no-untyped-def]
    """By byte of a word, how often it exceeds one half in each model and in each two of them."""
    ones = np.uint64(0x0101010101010101)
    in_a = in_b = in_c = in_ab = in_ac = in_bc = np.uint64(0)
    for i in range(a.size):
        x = (a[i] >> np.uint64(7)) & ones
        y = (b[i] >> np.uint64(7)) & ones
        z = (c[i] >> np.uint64(7)) & ones
        in_a += x
        in_b += y
        in_c += z
        in_ab += x & y
        in_ac += x & z
        in_bc += y & z
    return in_a, in_b, in_c, in_ab, in_ac, in_bc


@njit(cache=True, nogil=True)
def _sum_of_three(a, b, c):  # type: ignore[no-untyped-def]
    """By two bytes of a word, their sum over the words of three models."""
    even = np.uint64(0x00FF00FF00FF00FF)
    sums = np.uint64(0)
    for i in range(a.size):
        sums += (a[i] & even) + ((a[i] >> np.uint64(8)) & even)
        sums += (b[i] & even) + ((b[i] >> np.uint64(8)) & even)
        sums += (c[i] & even) + ((c[i] >> np.uint64(8)) & even)
    return sums


@njit(cache=True, nogil=True)
def _add_bytes(lanes):  # type: ignore[no-untyped-def]
    """Sum of the eight bytes of a word."""
    even = np.uint64(0x00FF00FF00FF00FF)
    return _add_shorts((lanes & even) + ((lanes >> np.uint64(8)) & even))


@njit(cache=True, nogil=True)
def _add_shorts(lanes):  # type: ignore[no-untyped-def]
    """Sum of the four 16-bit numbers of a word."""
    even = np.uint64(0x0000FFFF0000FFFF)
    lanes = (lanes & even) + ((lanes >> np.uint64(16)) & even)
    return np.int64(lanes & np.uint64(0xFFFFFFFF)) + np.int64(lanes >> np.uint64(32))


@njit(cache=True, nogil=True)
def _write_mean(total, models, row):  # type: ignore[no-untyped-def]
    """Σv / N rounded half down: floor((2·Σv + N − 1) / 2N).

    Half a unit is added to the numerator, so that no quotient is closer than 1/64 to a whole number
    (N up to 16): float32, off by less than 1e-4 here, cannot cross it (tested for every sum).
    """
    scale = np.float32(1.0 / models)
    offset = np.float32((models - 0.5) / (2.0 * models))
    for i in range(row.size):
        row[i] = np.uint8(np.int32(np.float32(total[i]) * scale + offset))


@njit(cache=True, nogil=True)
def _add_deviation(total, squares, models, deviation, term):  # type: ignore[no-untyped-def]
    """Adds Eq. 1 in fixed point, and half a step of the output, for rounding."""
    for i in range(term.size):
        v = np.float32(total[i])
        spread = np.float32(models) * np.float32(np.int32(squares[i])) - v * v
        term[i] += np.uint16(np.int32(np.sqrt(spread) * deviation)) + np.uint16(HALF_STEP)


@njit(cache=True, nogil=True)
def _add_deviation_of_three(half_spread, deviation, term):  # type: ignore[no-untyped-def]
    """`_add_deviation` from what `_sum_three` gives; the same to the bit, as 2 · 255² is exact."""
    for i in range(term.size):
        spread = np.float32(2.0) * np.float32(half_spread[i])
        term[i] += np.uint16(np.int32(np.sqrt(spread) * deviation)) + np.uint16(HALF_STEP)


@njit(cache=True, nogil=True)
def _add_gated_deviation(total, squares, models, deviation, gate, term):  # type: ignore[no-untyped-def]
    """The same for reading `released`: each of the two terms counts only where its gate is set."""
    for i in range(term.size):
        v = np.float32(total[i])
        spread = np.float32(models) * np.float32(np.int32(squares[i])) - v * v
        inconsistency = np.uint16(np.int32(np.sqrt(spread) * deviation))
        kept = term[i] if gate[i] & KEEP_UNCERTAINTY else np.uint16(0)
        kept += inconsistency if gate[i] & KEEP_INCONSISTENCY else np.uint16(0)
        term[i] = kept + np.uint16(HALF_STEP)


@njit(cache=True, nogil=True)
def _write_attention(term, claimed, claims, row):  # type: ignore[no-untyped-def]
    """Adds Eq. 3; `term` includes the half step already, so truncation rounds half up."""
    for i in range(row.size):
        overlap = np.uint16(UNIT) if (claimed[i] != 0) & (claims[i] > 1) else np.uint16(0)
        row[i] = np.uint8(np.uint16(term[i] + overlap) >> FRACTION_BITS)


@njit(cache=True, nogil=True)
def mark_tiles(  # type: ignore[no-untyped-def]
    planes, written, entropy, least_entropy, least_spread, first, last, gates
):
    """Tiles ``[first, last)`` of `planes` ``[model, organ, voxel]``; `gates` are zero where
    `written` ``[tile, organ]`` is False."""
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
