"""Resampling of volumes: one set of weights for training and serving.

Along each axis the old and the new grid fill the same box, edge to edge
(`VolumeGeometry.resampled`): new index ``j`` lies at ``p = (j + 0.5) · n_old / n_new − 0.5`` of the
old one. A new voxel is the mean of the old ones around ``p`` under a triangle of half-width
``max(1, n_old / n_new)``: linear interpolation when upsampling, and an antialiasing filter when
downsampling. Beyond the edge there is nothing: the weights inside are renormalised.

The triangle is evaluated in whole numbers, and taps are added in pairs from both ends, so that
flips commute with resampling to the bit. In-plane axes come first and z last, so that a slab needs
only its own source slices and slab-wise results equal whole-volume results to the bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from atlas_core.errors import GridMismatch, InvalidInput, UnknownLabel
from atlas_core.geometry import GRID_TOLERANCE, VolumeGeometry
from atlas_core.organs import BACKGROUND

MAX_LABELS = 256
"""Limit of distinct values in a label map that is resampled: the size of the tally."""

POSITION_STEPS = 4096
"""Fractions of a voxel between two arbitrary grids are rounded to 1/4096, so that votes are whole
numbers and ties are ties; 1/4096 of a voxel is below every grid tolerance."""


@dataclass(frozen=True)
class AxisWeights:
    """How each new index reads the old ones along one axis.

    New index ``j`` is the sum of ``weights[j, t] · old[start[j] + t]`` over ``t < count[j]``.

    Attributes:
        old: number of old voxels.
        start: int32 ``[new]``, first old index.
        count: int32 ``[new]``, number of old voxels that count.
        weights: float32 ``[new, tap]``; each row sums to one, 0 behind its count.
        votes: int64 ``[new, tap]``; the same as whole numbers, up to a factor for each row; empty
            where labels are not to be resampled (`spline_weights`).
    """

    old: int
    start: NDArray[np.int32]
    count: NDArray[np.int32]
    weights: NDArray[np.float32]
    votes: NDArray[np.int64]

    @property
    def new(self) -> int:
        """Number of new voxels."""
        return len(self.start)

    def source_range(self, start: int, stop: int) -> tuple[int, int]:
        """Old indices [first, last) that the new indices [start, stop) read.

        >>> axis_weights(4, 2).source_range(0, 1)
        (0, 3)
        """
        last = self.start[start:stop] + self.count[start:stop]
        return int(self.start[start:stop].min()), int(last.max())


@lru_cache(maxsize=64)
def axis_weights(old: int, new: int) -> AxisWeights:
    """Weights from `old` to `new` voxels that fill the same length.

    With everything doubled ``new`` times over, position and triangle are whole numbers: old index
    ``i`` gets ``max(0, H − |2·new·i − P|)`` votes, ``P = (2j + 1)·old − new``, ``H = 2·max(old,
    new)``.

    >>> axis_weights(2, 4).weights.round(2).tolist()
    [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [1.0, 0.0]]

    Raises:
        InvalidInput: an axis without voxels.
    """
    if old < 1 or new < 1:
        raise InvalidInput("an axis needs at least one voxel", got=(old, new))
    position = (2 * np.arange(new, dtype=np.int64) + 1) * old - new
    half_width = 2 * max(old, new)
    start = np.maximum((position - half_width) // (2 * new) + 1, 0)
    stop = np.minimum(-(-(position + half_width) // (2 * new)), old)
    count = stop - start
    tap = np.arange(int(count.max()), dtype=np.int64)
    distance = np.abs(2 * new * (start[:, None] + tap) - position[:, None])
    votes = np.where(tap < count[:, None], half_width - distance, 0)
    weights = votes / votes.sum(axis=1, keepdims=True)
    arrays = (start.astype(np.int32), count.astype(np.int32), weights.astype(np.float32), votes)
    for array in arrays:
        array.setflags(write=False)
    return AxisWeights(old, *arrays)


@njit(cache=True, nogil=True)
def _blend_rows(rows, start, count, weights, out):  # type: ignore[no-untyped-def]
    """out[j, :] = Σ weights[j, t] · rows[start[j] + t, :], the outermost two taps first."""
    for j in range(out.shape[0]):
        first, last = start[j], start[j] + count[j] - 1
        out[j, :] = 0.0
        for t in range(count[j] // 2):
            a, b = weights[j, t], weights[j, count[j] - 1 - t]
            for x in range(out.shape[1]):
                pair = a * np.float32(rows[first + t, x]) + b * np.float32(rows[last - t, x])
                out[j, x] += pair
        if count[j] % 2:
            middle = count[j] // 2
            a = weights[j, middle]
            for x in range(out.shape[1]):
                out[j, x] += a * np.float32(rows[first + middle, x])


@njit(cache=True, nogil=True)
def _blend_columns(rows, start, count, weights, out):  # type: ignore[no-untyped-def]
    """out[:, j] = Σ weights[j, t] · rows[:, start[j] + t], the outermost two taps first."""
    for y in range(out.shape[0]):
        for j in range(out.shape[1]):
            first, last = start[j], start[j] + count[j] - 1
            total = np.float32(0.0)
            for t in range(count[j] // 2):
                total += (
                    weights[j, t] * rows[y, first + t]
                    + weights[j, count[j] - 1 - t] * rows[y, last - t]
                )
            if count[j] % 2:
                total += weights[j, count[j] // 2] * rows[y, first + count[j] // 2]
            out[y, j] = total


@njit(cache=True, nogil=True)
def _blend_planes(  # type: ignore[no-untyped-def]
    block, y_start, y_count, y_weights, x_start, x_count, x_weights, out
):
    rows = np.empty((out.shape[1], block.shape[2]), np.float32)
    for k in range(block.shape[0]):
        _blend_rows(block[k], y_start, y_count, y_weights, rows)
        _blend_columns(rows, x_start, x_count, x_weights, out[k])


def _in_threads(work: Callable[[int, int], None], length: int) -> None:
    """Runs ``work(start, stop)`` over [0, length) on the processors this process may use.

    Threads rather than numba's own: those may not be entered by two Python threads at once.
    """
    workers = min(len(os.sched_getaffinity(0)), length)
    bounds = [length * n // workers for n in range(workers + 1)]
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, bounds[:-1], bounds[1:]))


def resample_planes(block: NDArray[Any], y: AxisWeights, x: AxisWeights) -> NDArray[np.float32]:
    """Resample the in-plane axes of every slice in the same way.

    Args:
        block: ``[z, y, x]``, C order, any real type.
        y, x: weights of these axes.

    Returns:
        float32 ``[z, y.new, x.new]``.
    """
    out = np.empty((block.shape[0], y.new, x.new), np.float32)

    def work(start: int, stop: int) -> None:
        _blend_planes(
            block[start:stop], y.start, y.count, y.weights, x.start, x.count, x.weights,
            out[start:stop],
        )  # fmt: skip

    _in_threads(work, block.shape[0])
    return out


def resample_across(
    planes: NDArray[np.float32], z: AxisWeights, start: int, stop: int, first: int
) -> NDArray[np.float32]:
    """New slices [start, stop) out of `planes`, the second and last step.

    Args:
        planes: ``[z, y, x]`` of `resample_planes`; its first slice is old slice `first`, and it
            holds ``z.source_range(start, stop)``.

    Returns:
        float32 ``[stop - start, y, x]``.
    """
    low, high = z.source_range(start, stop)
    if low < first or high > first + len(planes):
        raise InvalidInput(
            "source slices are missing",
            expected=f"[{low}, {high})",
            got=f"[{first}, {first + len(planes)})",
        )
    out = np.empty((stop - start, *planes.shape[1:]), np.float32)
    rows, flat = planes.reshape(len(planes), -1), out.reshape(len(out), -1)

    def work(low: int, high: int) -> None:
        chosen = slice(start + low, start + high)
        _blend_rows(
            rows, z.start[chosen] - np.int32(first), z.count[chosen], z.weights[chosen],
            flat[low:high],
        )  # fmt: skip

    _in_threads(work, len(out))
    return out


def resample_image(
    voxels: NDArray[Any], geometry: VolumeGeometry, target: VolumeGeometry
) -> NDArray[np.float32]:
    """A CT on another grid that fills the same box.

    Args:
        voxels: ``[i, j, k]``, the geometry's own axis order.
        target: same box, any spacing and axis order: ``geometry.canonical().resampled(spacing)``.

    Returns:
        float32 ``[i, j, k]`` in the target's axis order.

    Raises:
        GridMismatch: the grids do not fill the same box.
    """
    if not _same_box(geometry, target):
        raise GridMismatch(
            "an image is only resampled within its own box",
            expected=f"box of {geometry}",
            got=f"box of {target}",
            remedy="derive the target by VolumeGeometry.resampled",
        )
    block = np.ascontiguousarray(geometry.axis_map.to_canonical(voxels).transpose(2, 1, 0))
    x, y, z = _weights(geometry, target)
    out = resample_across(resample_planes(block, y, x), z, 0, z.new, 0)
    return target.axis_map.from_canonical(out.transpose(2, 1, 0))


def _weights(
    geometry: VolumeGeometry, target: VolumeGeometry
) -> tuple[AxisWeights, AxisWeights, AxisWeights]:
    """Weights along canonical x, y, z."""
    old, new = geometry.canonical().shape, target.canonical().shape
    x, y, z = (axis_weights(o, n) for o, n in zip(old, new, strict=True))
    return x, y, z


def _same_box(one: VolumeGeometry, other: VolumeGeometry) -> bool:
    """The outer edges of both grids agree, axis by canonical axis."""
    apart = np.abs(_box_mm(one.canonical()) - _box_mm(other.canonical())).max()
    return bool(apart <= GRID_TOLERANCE * min(*one.spacing_mm, *other.spacing_mm))


def _box_mm(geometry: VolumeGeometry) -> NDArray[np.float64]:
    """The eight outer corners of a grid, ``[8, 3]`` in mm."""
    ends = np.array([(-0.5, n - 0.5) for n in geometry.shape])
    index = np.array([[*c, 1.0] for c in np.stack(np.meshgrid(*ends), -1).reshape(-1, 3)])
    return np.asarray((index @ geometry.matrix.T)[:, :3])


def resample_label(
    labels: NDArray[Any], geometry: VolumeGeometry, target: VolumeGeometry
) -> NDArray[Any]:
    """A mask or label map on another grid, label-safe: no value appears that was not there before.

    Every new voxel takes the label with the largest weight, as if each label's mask had been
    resampled like an image and the largest taken; no float volume is made. Votes are whole numbers,
    so that the result does not depend on the order of axes and commutes with flips (nearest
    neighbour does neither: it breaks its ties to one side). A tie goes to the lowest label: an
    organ needs more than half against the background.

    Grids that fill the same box use `axis_weights`, with antialiasing. Any other pair (a mask
    that was cropped, shifted or turned) is read at the new voxel's centre between its eight
    neighbours; outside the old box is background.

    Args:
        labels: ``[i, j, k]`` whole numbers, `geometry`'s axis order.

    Returns:
        ``[i, j, k]`` of the same data type, `target`'s axis order.

    Raises:
        UnknownLabel: more than 256 distinct values.
    """
    if labels.dtype == np.bool_:
        return resample_label(labels.view(np.uint8), geometry, target).view(np.bool_)
    if labels.dtype != np.uint8:
        return _by_rank(labels, geometry, target)
    block = np.ascontiguousarray(geometry.axis_map.to_canonical(labels).transpose(2, 1, 0))
    out = np.empty(target.canonical().shape[::-1], np.uint8)
    if _same_box(geometry, target):
        x, y, z = _weights(geometry, target)

        def work(start: int, stop: int) -> None:
            chosen = slice(start, stop)
            _vote_box(
                block, z.start[chosen], z.count[chosen], z.votes[chosen], y.start, y.count, y.votes,
                x.start, x.count, x.votes, out[chosen],
            )  # fmt: skip
    else:
        index = np.linalg.inv(geometry.canonical().matrix) @ target.canonical().matrix

        def work(start: int, stop: int) -> None:
            _vote_points(block, index, start, out[start:stop])

    _in_threads(work, len(out))
    return target.axis_map.from_canonical(out.transpose(2, 1, 0))


def _by_rank(
    labels: NDArray[Any], geometry: VolumeGeometry, target: VolumeGeometry
) -> NDArray[Any]:
    """`resample_label` for values beyond uint8: by rank, the background first."""
    values = np.unique(np.append(labels.ravel(), labels.dtype.type(BACKGROUND)))
    if len(values) > MAX_LABELS:
        raise UnknownLabel(
            "label map has too many distinct values", expected=f"at most {MAX_LABELS}",
            got=len(values), remedy="map its labels to organs first",
        )  # fmt: skip
    background = int(np.searchsorted(values, BACKGROUND))
    # Rank 0 must be the background: it wins ties and fills what lies outside.
    values = np.concatenate([values[background : background + 1], np.delete(values, background)])
    order = np.argsort(values)
    ranks = order[np.searchsorted(values, labels, sorter=order)].astype(np.uint8)
    return values[resample_label(ranks, geometry, target)]


@njit(cache=True, nogil=True)
def _winner(tally, seen, distinct):  # type: ignore[no-untyped-def]
    """The label with the most votes, the lowest on a tie; resets the tally."""
    best, most = 0, np.int64(-1)
    for n in range(distinct):
        label = seen[n]
        if tally[label] > most or (tally[label] == most and label < best):
            best, most = label, tally[label]
        tally[label] = 0
    return best


@njit(cache=True, nogil=True)
def _vote_box(  # type: ignore[no-untyped-def]
    block, z_start, z_count, z_votes, y_start, y_count, y_votes, x_start, x_count, x_votes, out
):
    width = block.shape[2]
    low, high = np.empty(width, np.uint8), np.empty(width, np.uint8)
    tally, seen = np.zeros(256, np.int64), np.empty(256, np.int64)
    for k in range(out.shape[0]):
        for j in range(out.shape[1]):
            # Range of labels over the z and y taps: most columns hold one label only.
            low[:] = 255
            high[:] = 0
            for s in range(z_start[k], z_start[k] + z_count[k]):
                for r in range(y_start[j], y_start[j] + y_count[j]):
                    for x in range(width):
                        low[x] = min(low[x], block[s, r, x])
                        high[x] = max(high[x], block[s, r, x])
            for i in range(out.shape[2]):
                first, last = x_start[i], x_start[i] + x_count[i]
                least, most = low[first], high[first]
                for x in range(first + 1, last):
                    least, most = min(least, low[x]), max(most, high[x])
                if least == most:
                    out[k, j, i] = least
                    continue
                distinct = 0
                for c in range(z_count[k]):
                    for b in range(y_count[j]):
                        zy = z_votes[k, c] * y_votes[j, b]
                        for a in range(x_count[i]):
                            label = block[z_start[k] + c, y_start[j] + b, first + a]
                            if tally[label] == 0:
                                seen[distinct] = label
                                distinct += 1
                            tally[label] += zy * x_votes[i, a]
                out[k, j, i] = _winner(tally, seen, distinct)


@njit(cache=True, nogil=True)
def _vote_points(block, index, start, out):  # type: ignore[no-untyped-def]
    """Reads `block` at ``index @ (x, y, z, 1)``; `out` begins at slice `start` of the new grid."""
    tally, seen = np.zeros(256, np.int64), np.empty(256, np.int64)
    size = np.array([block.shape[2], block.shape[1], block.shape[0]])
    base, vote = np.empty(3, np.int64), np.empty((3, 2), np.int64)
    for k in range(out.shape[0]):
        for j in range(out.shape[1]):
            for i in range(out.shape[2]):
                inside = True
                for a in range(3):
                    p = index[a, 0] * i + index[a, 1] * j + index[a, 2] * (k + start) + index[a, 3]
                    step = np.int64(np.rint(p * POSITION_STEPS))
                    # The outer half voxel belongs to the box; the edge itself lies inside.
                    if 2 * step < -POSITION_STEPS or 2 * step > (2 * size[a] - 1) * POSITION_STEPS:
                        inside = False
                        break
                    step = min(max(step, np.int64(0)), (size[a] - 1) * POSITION_STEPS)
                    base[a] = min(step // POSITION_STEPS, max(size[a] - 2, 0))
                    vote[a, 1] = step - base[a] * POSITION_STEPS
                    vote[a, 0] = POSITION_STEPS - vote[a, 1]
                if not inside:
                    out[k, j, i] = 0
                    continue
                distinct = 0
                for corner in range(8):
                    dx, dy, dz = corner & 1, (corner >> 1) & 1, corner >> 2
                    votes = vote[0, dx] * vote[1, dy] * vote[2, dz]
                    if votes > 0:
                        label = block[base[2] + dz, base[1] + dy, base[0] + dx]
                        if tally[label] == 0:
                            seen[distinct] = label
                            distinct += 1
                        tally[label] += votes
                out[k, j, i] = _winner(tally, seen, distinct)
