"""From the models' grid to the CT's own, slab by slab, without a volume of floats per organ.

Index j of the CT's axis (n voxels) lies at ``t = (j + 0.5) · m / n − 0.5`` of the model's (m
voxels), since both grids have the same box edges; t is clamped to 0..m − 1, and values are
interpolated linearly along every axis. All weights are multiples of 1/256, so every sum is one of
integers: results do not depend on how the volume is cut, and a flipped volume gives the flipped
result. In exchange, a position is off by at most 1/512 of a model voxel.

A row of the CT is computed only for the organs that occur in the model rows around it, and only in
the columns where they occur.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numba import njit
from numpy.typing import NDArray

from atlas_attention.fusion import HALF_BYTE, Fused, Threads, Zyx, parallel_for

WEIGHT_BITS = 8
"""Positions between two model voxels are rounded to 1/256."""

ABOVE_HALF = np.uint32((2 * HALF_BYTE - 1) << (2 * WEIGHT_BITS - 1))
"""127.5 in the fixed point of an interpolated mean: values above it mean p > 0.5."""

SLAB_SLICES = 16
"""Most CT slices per slab, by default."""

SLAB_BYTES = 1 << 27
"""Most bytes of attention per slab, by default, if a slice has fewer: bounds memory."""


def default_slab_slices(organs: int, plane: int) -> int:
    """Slices per slab for maps of `organs` with `plane` voxels a slice: 16 for nine organs of
    512×512, 4 for 117."""
    return max(1, min(SLAB_SLICES, SLAB_BYTES // max(1, organs * plane)))


@dataclass(frozen=True)
class NativeSlab:
    """Slices ``[start, stop)`` of the canonical CT grid.

    Attributes:
        attention: uint8 ``[organ, z, y, x]``.
        label: uint8 ``[z, y, x]``, label ids; 0 is background.
    """

    start: int
    stop: int
    attention: NDArray[np.uint8]
    label: NDArray[np.uint8]


@dataclass(frozen=True)
class AxisPositions:
    """Where the CT's voxels lie along one axis of the model's grid.

    Attributes:
        lower: model index at or below each CT index, ``[n]``.
        weight: of the model voxel above it, in 1/256, ``[n]``; 0 if there is none.
        voxels: number of model voxels.
    """

    lower: NDArray[np.int64]
    weight: NDArray[np.uint32]
    voxels: int

    @classmethod
    def between(cls, model: int, native: int) -> AxisPositions:
        """Positions of `native` voxels among `model` voxels that cover the same length."""
        numerator = np.clip(
            (2 * np.arange(native, dtype=np.int64) + 1) * model - native,
            0,
            2 * native * (model - 1),
        )
        lower, rest = np.divmod(numerator, 2 * native)
        # Half to even, because a mirrored axis must get the mirrored weights.
        weight = np.rint(rest * ((1 << WEIGHT_BITS) / (2 * native))).astype(np.int64)
        carried = weight >> WEIGHT_BITS
        return cls(lower + carried, (weight & 255).astype(np.uint32), model)

    @classmethod
    def nearest(cls, model: int, native: int) -> AxisPositions:
        """As `between`, each at its nearest model voxel; half way, the upper one."""
        position = (2 * np.arange(native, dtype=np.int64) + 1) * model
        lower = np.clip(position // (2 * native), 0, model - 1)
        return cls(lower, np.zeros(native, np.uint32), model)

    @property
    def upper(self) -> NDArray[np.int64]:
        """The highest model index that each CT index needs."""
        return self.lower + (self.weight > 0)

    def readers(self) -> NDArray[np.int64]:
        """Which CT indices read which model voxels, ``[2, m + 1]``.

        Model voxels ``[a, b)`` are read by the CT indices ``[readers[0, a], readers[1, b])``.
        """
        index = np.arange(self.voxels + 1)
        return np.stack([np.searchsorted(self.upper, index), np.searchsorted(self.lower, index)])


Positions = tuple[NDArray[np.int64], NDArray[np.uint32]]
"""Of the CT's slices or rows on the models' grid: see `AxisPositions.lower` and `weight`."""

Spans = tuple[NDArray[np.int32], NDArray[np.int32]]
"""Of attention and mean; see `_spans`."""


@dataclass(frozen=True)
class _Piece:
    """Slices of the models' grid in one block of memory.

    Attributes:
        begin: the first of them.
        stop: the CT slices below it, and above those of the piece before, are read from here.
        spans: of its rows; None: the grids are equal.
    """

    fused: Fused
    begin: int
    stop: int
    spans: Spans | None


class NativeGrid:
    """Turns fused slabs of rising z on the models' grid into slabs on the canonical CT grid.

    Slabs whose attention has no organ give labels alone.

    Args:
        model, native: voxels of the two grids (z, y, x).
        labels: label id of every organ channel.
        flips: which axes (z, y, x) run backwards within a slab; start and stop of a slab still
            count along the canonical z.
        slab_slices: most slices of a slab.
        threads: see `threads.Threads`.
        attended_from: smallest byte of attention of a voxel that counts as attended.
    """

    def __init__(
        self,
        model: Zyx,
        native: Zyx,
        labels: tuple[int, ...],
        *,
        flips: tuple[bool, bool, bool] = (False, False, False),
        slab_slices: int = SLAB_SLICES,
        threads: Threads = None,
        attended_from: int = 1,
    ) -> None:
        self._native = native
        self._attended_from = np.uint8(attended_from)
        self._identity = model == native
        self._names = np.array([0, *labels], np.uint8)
        self._flips = flips
        self._slab_slices = slab_slices
        self._threads = threads
        self._z, self._y, self._x = (
            AxisPositions.between(m, n) for m, n in zip(model, native, strict=True)
        )
        # Unsigned: a signed index could count from the end, and such code is not vectorised.
        self._columns = (self._x.lower.astype(np.uint32), self._x.weight, self._x.readers())
        self._held: Fused | None = None  # slices that later CT slices still need
        self._held_from = 0
        self._next = 0  # next CT slice to compute
        organs = len(labels)
        self.attention_sum = np.zeros(organs, np.int64)
        """Sum of all attention bytes so far, per organ."""
        self.attended = np.zeros(organs, np.int64)
        """Number of attended voxels so far, per organ."""
        self.labelled = np.zeros(organs, np.int64)
        """Number of voxels with each organ's label so far."""

    @property
    def reads_labels(self) -> bool:
        """Whether labels are taken as they come; else they follow from the interpolated means."""
        return self._identity

    def push(self, fused: Fused) -> Iterator[NativeSlab]:
        """Adds the next slices of the models' grid; yields every CT slab that is final then, in
        order."""
        held = self._held
        begin = self._held_from + (held.slices if held else 0)
        known = begin + fused.slices
        ready = int(np.searchsorted(self._z.upper, known))
        pieces = []
        if held is not None and held.slices:
            # Only the CT slices between the last slice held and the first that came need both: all
            # the others are read where they lie.
            inside = max(self._next, int(np.searchsorted(self._z.lower, begin)))
            seam = Fused.concatenated([held, fused.to_slice(1)])
            pieces.append(self._piece(seam, self._held_from, min(ready, inside)))
        pieces.append(self._piece(fused, begin, ready))
        while self._next < ready:
            stop = min(ready, self._next + self._slab_slices)
            yield self._slab(pieces, self._next, stop)
            self._next = stop
        needed = known if self._next == self._native[0] else int(self._z.lower[self._next])
        needed = min(needed, known)
        # A copy, or a view of a few slices would keep the memory of all.
        if held is None or needed >= begin:
            self._held = fused.from_slice(needed - begin).copy()
        else:
            self._held = Fused.concatenated([held.from_slice(needed - self._held_from), fused])
        self._held_from = needed

    def _piece(self, fused: Fused, begin: int, stop: int) -> _Piece:
        spans = None
        if not self._identity:
            spans = (self._spans(fused.attention, 1), self._spans(fused.mean, HALF_BYTE))
        return _Piece(fused, begin, stop, spans)

    def _spans(self, volume: NDArray[np.uint8], least: int) -> NDArray[np.int32]:
        """See `_spans`."""
        spans = np.zeros((*volume.shape[:3], 2), np.int32)

        def kernel(first: int, last: int) -> None:
            _spans(volume[first:last], least, spans[first:last])

        parallel_for(kernel, len(volume), self._threads)
        return spans

    def _slab(self, pieces: Sequence[_Piece], start: int, stop: int) -> NativeSlab:
        """CT slices ``[start, stop)``, each from the first piece that reaches so far."""
        if self._identity:
            return self._same_slab(pieces[-1], start, stop)
        fused = pieces[0].fused
        shape = (stop - start, *self._native[1:])
        rows = shape[1]
        attention = np.zeros((len(fused.attention), *shape), np.uint8)
        label = np.zeros(shape, np.uint8)
        counts = np.zeros((3, len(fused.mean), shape[0] * rows), np.int32)
        y = (self._y.lower, self._y.weight)
        if self._flips[1]:
            y = (y[0][::-1].copy(), y[1][::-1].copy())
        at = start
        for piece in pieces:
            until = min(stop, piece.stop)
            if at >= until:
                continue
            z = (self._z.lower[start:stop] - piece.begin, self._z.weight[start:stop])
            within = (at - start, until - start)
            if self._flips[0]:
                z = (z[0][::-1].copy(), z[1][::-1].copy())
                within = (stop - until, stop - at)
            kernel = partial(
                self._interpolate, piece, z, y, within[0] * rows, attention, label, counts
            )
            parallel_for(kernel, (within[1] - within[0]) * rows, self._threads)
            at = until
        self._count(*counts.sum(axis=2, dtype=np.int64))
        return NativeSlab(start, stop, attention, label)

    def _interpolate(
        self,
        piece: _Piece,
        z: Positions,
        y: Positions,
        row: int,
        attention: NDArray[np.uint8],
        label: NDArray[np.uint8],
        counts: NDArray[np.int32],
        first: int,
        last: int,
    ) -> None:
        """Rows ``[first, last)`` after `row` of a slab."""
        _interpolate_rows(
            piece.fused.attention, piece.fused.mean, piece.spans, z, y, self._columns,
            self._flips[2], self._names, self._attended_from, row + first, row + last,
            attention, label, counts,
        )  # fmt: skip

    def _same_slab(self, piece: _Piece, start: int, stop: int) -> NativeSlab:
        """The same if the two grids are equal: only the direction of the axes changes."""
        turned = tuple(slice(None, None, -1 if back else 1) for back in self._flips)
        within = slice(start - piece.begin, stop - piece.begin)
        attention = np.ascontiguousarray(piece.fused.attention[:, within][:, *turned])
        channel = piece.fused.label[within][turned]
        self._count(
            attention.sum(axis=(1, 2, 3), dtype=np.int64),
            np.count_nonzero(attention >= self._attended_from, axis=(1, 2, 3)),
            np.bincount(channel.ravel(), minlength=len(self._names))[1:],
        )
        return NativeSlab(start, stop, attention, self._names[channel])

    def _count(
        self,
        attention_sum: NDArray[np.int64],
        attended: NDArray[np.int64],
        labelled: NDArray[np.int64],
    ) -> None:
        self.attention_sum[: len(attention_sum)] += attention_sum
        self.attended[: len(attended)] += attended
        self.labelled += labelled


@njit(cache=True, nogil=True)
def _spans(volume, least, spans):  # type: ignore[no-untyped-def]
    """Per row of `volume` ``[organ, z, y, x]`` the range of columns that hold a value >= `least`,
    into `spans` ``[organ, z, y, 2]`` of zeros."""
    organs, slices, rows, columns = volume.shape
    for c in range(organs):
        for z in range(slices):
            for y in range(rows):
                row = volume[c, z, y]
                most = np.uint8(0)
                for x in range(columns):
                    most = max(most, row[x])
                if most >= least:
                    left = 0
                    while row[left] < least:
                        left += 1
                    right = columns
                    while row[right - 1] < least:
                        right -= 1
                    spans[c, z, y, 0] = left
                    spans[c, z, y, 1] = right


@njit(cache=True, nogil=True)
def _joint_span(spans, z0, z1, y0, y1):  # type: ignore[no-untyped-def]
    """The range of columns that the spans of four rows cover."""
    left = np.int64(1 << 30)
    right = np.int64(0)
    for z in (z0, z1):
        for y in (y0, y1):
            if spans[z, y, 1] > 0:
                left = min(left, np.int64(spans[z, y, 0]))
                right = max(right, np.int64(spans[z, y, 1]))
    return left, right


@njit(cache=True, nogil=True)
def _blend_rows(volume, z0, z1, wz, y0, y1, wy, left, right, out):  # type: ignore[no-untyped-def]
    """Interpolates along z and y into `out` ``[x]``, in 1/256 of a byte step, columns ``[left,
    right)``."""
    a = volume[z0, y0, left:right]
    b = volume[z0, y1, left:right]
    c = volume[z1, y0, left:right]
    d = volume[z1, y1, left:right]
    whole = np.uint32(1 << WEIGHT_BITS)
    wa = (whole - wz) * (whole - wy)
    wb = (whole - wz) * wy
    wc = wz * (whole - wy)
    wd = wz * wy
    target = out[left:right]
    for x in range(a.size):
        blended = wa * np.uint32(a[x]) + wb * np.uint32(b[x])
        blended += wc * np.uint32(c[x]) + wd * np.uint32(d[x])
        target[x] = (blended + np.uint32(1 << (WEIGHT_BITS - 1))) >> np.uint32(WEIGHT_BITS)


@njit(cache=True, nogil=True)
def _interpolate_rows(  # type: ignore[no-untyped-def]
    attention, mean, spans, z_axis, y_axis, x_axis, flip_x, names,
    attended_from, first, last, out_attention, out_label, counts,
):  # fmt: skip
    """CT rows ``[first, last)`` of a slab, numbered over its slices and rows; all outputs must be
    zero before."""
    organs, _, _, columns = mean.shape
    attended_organs = attention.shape[0]
    z_lower, z_weight = z_axis
    y_lower, y_weight = y_axis
    x_lower, x_weight, readers = x_axis
    attention_spans, mean_spans = spans
    height, width = out_label.shape[1:]
    line = np.zeros(columns + 1, np.uint32)
    attention_row = np.empty(width, np.uint8)
    best = np.empty(width, np.uint32)
    named = np.empty(width, np.uint8)
    for index in range(first, last):
        k, j = divmod(index, height)
        z0 = z_lower[k]
        wz = z_weight[k]
        z1 = z0 + 1 if wz > 0 else z0
        y0 = y_lower[j]
        wy = y_weight[j]
        y1 = y0 + 1 if wy > 0 else y0
        labelled = False
        for c in range(organs):
            left, right = 0, 0
            if c < attended_organs:
                left, right = _joint_span(attention_spans[c], z0, z1, y0, y1)
            if left < right:
                _blend_rows(attention[c], z0, z1, wz, y0, y1, wy, left, right, line)
                if left > 0:
                    line[left - 1] = 0
                line[right] = 0
                begin = readers[0, left]
                end = readers[1, right]
                total, attended = _interpolate_attention(
                    line, x_lower[begin:end], x_weight[begin:end], attended_from, attention_row
                )
                _store_row(attention_row, begin, end, flip_x, out_attention[c, k, j])
                counts[0, c, index] = total
                counts[1, c, index] = attended
            left, right = _joint_span(mean_spans[c], z0, z1, y0, y1)
            if left < right:
                # Neighbouring columns contribute too, although they are below one half themselves.
                before = max(0, left - 1)
                after = min(columns, right + 1)
                _blend_rows(mean[c], z0, z1, wz, y0, y1, wy, before, after, line)
                if not labelled:
                    best[:] = ABOVE_HALF
                    named[:] = 0
                    labelled = True
                begin = readers[0, left]
                end = readers[1, right]
                _update_labels(
                    line, x_lower[begin:end], x_weight[begin:end],
                    np.uint8(c + 1), best[begin:end], named[begin:end],
                )  # fmt: skip
        if labelled:
            for i in range(width):
                if named[i]:
                    counts[2, named[i] - 1, index] += 1
                    named[i] = names[named[i]]
            _store_row(named, 0, width, flip_x, out_label[k, j])


@njit(cache=True, nogil=True)
def _blend_columns(line, at, weight):  # type: ignore[no-untyped-def]
    """Interpolates along x between column `at` and the next, in 1/256² of a byte step."""
    left = np.uint32(line[at] * np.uint32(np.uint32(1 << WEIGHT_BITS) - weight))
    return np.uint32(left + np.uint32(line[at + np.uint32(1)] * weight))


@njit(cache=True, nogil=True)
def _interpolate_attention(line, lower, weight, attended_from, row):  # type: ignore[no-untyped-def]
    """Fills the start of `row` with bytes along x; their sum, and how many reach
    `attended_from`."""
    half_step = np.uint32(1 << (2 * WEIGHT_BITS - 1))
    for i in range(lower.size):
        blended = _blend_columns(line, lower[i], weight[i])
        row[i] = np.uint8(np.uint32(blended + half_step) >> np.uint32(2 * WEIGHT_BITS))
    total = np.uint32(0)
    attended = np.uint32(0)
    for i in range(lower.size):
        total += np.uint32(row[i])
    for i in range(lower.size):
        attended += np.uint32(row[i] >= attended_from)
    return total, attended


@njit(cache=True, nogil=True)
def _update_labels(line, lower, weight, organ, best, named):  # type: ignore[no-untyped-def]
    """Labels the voxels along x where the mean of `organ` exceeds that of the organs before."""
    for i in range(lower.size):
        value = _blend_columns(line, lower[i], weight[i])
        larger = value > best[i]
        best[i] = value if larger else best[i]
        named[i] = organ if larger else named[i]


@njit(cache=True, nogil=True)
def _store_row(values, begin, end, backwards, row):  # type: ignore[no-untyped-def]
    """Copies the first values into columns ``[begin, end)`` of `row`, which may run backwards."""
    if backwards:
        target = row[row.size - end : row.size - begin]
        for i in range(target.size):
            target[i] = values[target.size - 1 - i]
    else:
        target = row[begin:end]
        for i in range(target.size):
            target[i] = values[i]
