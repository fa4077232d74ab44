"""Where in a CT the organs of an ensemble can be, so that finer windows are laid only there.

One member, the cheapest, looks at the whole body once, in windows that hardly overlap. The box
around all voxels that it does not rule out, and a margin, is where the ensemble works; what lies
outside is left out, which is on record with the result. A structure that this member misses
entirely, and that lies beyond the margin of all others, is missed: so locating is off by default.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from atlas_core.model_spec import ModelSpec
from numpy.typing import NDArray

from atlas_attention.fusion import Box, WindowPlan, Zyx
from atlas_attention.scoring.body_box import on_grid
from atlas_attention.scoring.model_grid import CtSource, ModelGridReader, extract_window, to_zyx

NOT_RULED_OUT = 26
"""The smallest byte of a soft prediction that counts, p > 0.1: what the ensemble may be unsure of
must not be left out either."""

MARGIN_MM = 30.0
"""Around what was found: more than the windows of a coarse pass are off at their edges."""

SLICES_AT_ONCE = 16

Submit = Callable[[ModelSpec, NDArray[np.float32]], Future[NDArray[np.uint8]]]
"""See `pipeline.Predictor.submit`."""

Wait = Callable[[Future[NDArray[np.uint8]]], NDArray[np.uint8]]
"""Waits for an answer."""


@dataclass(frozen=True)
class Located:
    """Where the organs can be.

    Attributes:
        box: in voxels of the canonical grid (z, y, x); None: nowhere, so everywhere is looked at.
        left_out: share of the body's box that lies outside, 0..1.
        windows: predicted to find out.
    """

    box: Box | None
    left_out: float
    windows: int


def cheapest(specs: Sequence[ModelSpec]) -> ModelSpec:
    """The member with the fewest voxels to predict, that of the coarsest grid; the first of equal
    ones."""
    return max(specs, key=lambda spec: np.prod(spec.spacing_mm))


def locate(
    source: CtSource,
    spec: ModelSpec,
    organs: Sequence[str],
    body: Box,
    submit: Submit,
    wait: Wait,
    *,
    margin_mm: float = MARGIN_MM,
    windows_in_flight: int = 1,
) -> Located:
    """The box of all that one member does not rule out, with a margin, within the body.

    Args:
        source: the CT.
        spec: the member that looks.
        organs: of interest; others that the member knows do not count.
        body: where it looks, in voxels of the canonical grid (z, y, x).
        submit, wait: run the member; as many windows as `windows_in_flight` at once.
        margin_mm: on all sides.
    """
    native = to_zyx(source.canonical.shape)
    grid = to_zyx(source.canonical.resampled(spec.spacing_mm).shape)
    plan = WindowPlan.over(grid, to_zyx(spec.patch), 0.0, on_grid(body, native, grid))
    channels = [channel for channel, organ in enumerate(spec.organs) if organ in set(organs)]
    reader = ModelGridReader(source, grid, SLICES_AT_ONCE)
    found = _Extent(grid)
    pending: deque[tuple[Zyx, Future[NDArray[np.uint8]]]] = deque()
    windows = 0
    try:
        for k in range(plan.rows):
            block = reader.read(*plan.z_range(k))
            for window in plan.row(k):
                voxels = extract_window(block, window, plan)
                if voxels.max() <= spec.hu_window[0]:
                    continue
                while len(pending) >= windows_in_flight:
                    start, answer = pending[0]
                    found.add(start, wait(answer)[channels])
                    pending.popleft()
                pending.append((window.start, submit(spec, voxels)))
                windows += 1
        while pending:
            start, answer = pending[0]
            found.add(start, wait(answer)[channels])
            pending.popleft()
    finally:
        for _, answer in pending:
            answer.cancel()
    if found.box is None:
        return Located(None, 0.0, windows)
    spacing_mm = source.canonical.spacing_mm[::-1]
    box = _grown(on_grid(found.box, grid, native), spacing_mm, margin_mm, body)
    return Located(box, 1.0 - _voxels(box) / _voxels(body), windows)


class _Extent:
    """The box around all voxels that count, in voxels of a grid (z, y, x)."""

    def __init__(self, grid: Zyx) -> None:
        self._grid = grid
        self.box: Box | None = None

    def add(self, start: Zyx, soft: NDArray[np.uint8]) -> None:
        """Takes one answer, uint8 ``[organ, z, y, x]``, of a window that begins at `start`."""
        counts: NDArray[np.bool_] = np.any(soft >= NOT_RULED_OUT, axis=0)
        ranges = []
        for axis, (first, voxels) in enumerate(zip(start, self._grid, strict=True)):
            others = tuple(other for other in range(3) if other != axis)
            at = np.flatnonzero(counts.any(axis=others)) + first
            at = at[(at >= 0) & (at < voxels)]
            if not at.size:
                return
            ranges.append((int(at[0]), int(at[-1]) + 1))
        known = self.box or ranges
        z, y, x = ((min(a[0], b[0]), max(a[1], b[1])) for a, b in zip(known, ranges, strict=True))
        self.box = (z, y, x)


def _grown(box: Box, spacing_mm: Sequence[float], margin_mm: float, within: Box) -> Box:
    """`box` with a margin, as far as it lies within another one; at least its nearest voxel."""
    z, y, x = (
        (
            min(max(low, start - round(margin_mm / mm)), high - 1),
            max(min(high, stop + round(margin_mm / mm)), low + 1),
        )
        for (start, stop), mm, (low, high) in zip(box, spacing_mm, within, strict=True)
    )
    return z, y, x


def _voxels(box: Box) -> int:
    return int(np.prod([stop - start for start, stop in box]))
