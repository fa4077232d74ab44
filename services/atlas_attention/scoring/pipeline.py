"""One CT and an ensemble in, attention and pseudo labels on the CT's own grid out, slab by slab.

    CT slabs → model's grid → windows → every model → blend → fuse → CT's grid → file's axis order

Each stage holds a few slices at most, so memory depends on the size of a slice and the depth of a
window, not on the number of slices. From blending on, all stages compute in integers: the result is
the same to the bit whatever the order of models and answers, and wherever slabs are cut.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Protocol

import numpy as np
from atlas_core.errors import InvalidInput
from atlas_core.model_spec import MAX_MODEL_STREAMS, ModelSpec
from atlas_core.organs import OrganScheme
from atlas_core.records import OrganScore, Reading
from numpy.typing import NDArray

from atlas_attention.fusion import (
    ATTENTION_SCALE,
    DEFAULT_OVERLAP,
    Compute,
    CpuCompute,
    Fused,
    Window,
    WindowBlender,
    WindowPlan,
    available_threads,
    disagreement,
    mean_probability_sum,
)
from atlas_attention.scoring.body_box import body_box, on_grid
from atlas_attention.scoring.model_grid import CtSource, ModelGridReader, extract_window, to_zyx
from atlas_attention.scoring.native_grid import NativeGrid, NativeSlab, default_slab_slices

CANCEL_POLL_S = 0.1
"""How soon a cancelled call stops waiting for the models, in seconds."""

ProgressCallback = Callable[[int, int], None]
"""Called with predictions done and in total, of all models; air counts as done."""


class Predictor(Protocol):
    """Runs one window through one model; `atlas_attention.triton.predictor` has one."""

    def submit(self, spec: ModelSpec, window: NDArray[np.float32]) -> Future[NDArray[np.uint8]]:
        """The soft prediction, uint8 ``[organ, z, y, x]``, of a window of HU ``[z, y, x]``.

        Neither side changes the window until the future is done.
        """


@dataclass(frozen=True)
class GridSlab:
    """Part of the maps in the CT file's own axis order.

    Attributes:
        axis: file axis along which slabs are cut (the one closest to the patient's z axis).
        start, stop: indices along it; slabs cover the grid once, rising or falling.
        attention: uint8 ``[organ, i, j, k]``, i fastest in memory; Eq. 4 = byte · ATTENTION_SCALE.
        label: uint8 ``[i, j, k]``, i fastest in memory; label ids, 0 is background.
    """

    axis: int
    start: int
    stop: int
    attention: NDArray[np.uint8]
    label: NDArray[np.uint8]


@dataclass(frozen=True)
class AttentionSummary:
    """Attention sizes, pseudo label volumes and counts of a whole CT.

    Attributes:
        organs: attention size and pseudo label volume of every attention channel, in order. The
            size is the sum of attention over the CT's voxels (reading `paper`), or the number of
            voxels with any (reading `released`). Disagreement and expected volume are counted on
            the models' grid.
        windows: windows predicted, of all models together.
        windows_air: windows skipped because they hold nothing but air, of all models together.
        predict_s: seconds spent waiting for the models.
    """

    organs: tuple[OrganScore, ...]
    windows: int
    windows_air: int
    predict_s: float


def attend(
    source: CtSource,
    specs: Sequence[ModelSpec],
    predictor: Predictor,
    reading: Reading = Reading.PAPER,
    organs: Sequence[str] | None = None,
    *,
    scheme: OrganScheme,
    overlap: float = DEFAULT_OVERLAP,
    windows_in_flight: int | None = None,
    slab_slices: int | None = None,
    threads: int | None = None,
    compute: Compute | None = None,
    on_progress: ProgressCallback | None = None,
    cancelled: threading.Event | None = None,
) -> AttentionRun:
    """Attention maps and pseudo labels of one CT, as an iterator of slabs on its own grid.

    Args:
        source: the CT.
        specs: the ensemble; all of the same grid, patch and list of organs.
        predictor: runs the models.
        reading: how soft predictions become attention.
        organs: attention channels wanted, in this order; None: all of the ensemble. Pseudo labels
            always weigh all organs of the ensemble against one another.
        scheme: label ids of the organs.
        overlap: share that neighbouring windows have in common, per axis.
        windows_in_flight: most windows with the models at once; None: see
            `default_windows_in_flight`.
        slab_slices: most slices that are read, fused and delivered at once; bounds memory. None:
            see `default_slab_slices`.
        threads: most threads of a kernel on the CPU; None: one per available core. While the models
            have work, a kernel runs on one: see `AttentionRun`.
        compute: where soft predictions are blended and fused; None: on the CPU.
        on_progress: see `ProgressCallback`.
        cancelled: once set, the run stops with `concurrent.futures.CancelledError`.

    Raises:
        InvalidInput: an empty ensemble, or models that do not fit together; names the difference.
        UnknownLabel: an organ that the ensemble or `scheme` does not know.
    """
    ensemble = _require_ensemble(specs)
    chosen = tuple(ensemble.organs if organs is None else organs)
    known = scheme.select(ensemble.organs)
    channels = [ensemble.organs.index(known[name].name) for name in chosen]
    columns, rows, _ = source.canonical.shape
    return AttentionRun(
        source, tuple(specs), predictor, reading,
        channels=channels, labels=known.labels, overlap=overlap,
        windows_in_flight=windows_in_flight or default_windows_in_flight(),
        slab_slices=slab_slices or default_slab_slices(len(ensemble.organs), columns * rows),
        threads=threads, compute=compute or CpuCompute(),
        on_progress=on_progress, cancelled=cancelled,
    )  # fmt: skip


def default_windows_in_flight() -> int:
    """Windows that keep the models of this machine busy: one per core, at most four, being
    predicted, and one more waiting."""
    return min(available_threads(), MAX_MODEL_STREAMS) + 1


def plan_windows(source: CtSource, specs: Sequence[ModelSpec], overlap: float) -> WindowPlan:
    """Where the windows of an ensemble lie in a CT: over the body (see `body_box`), or over the
    whole grid if nothing but air is found."""
    grid = to_zyx(source.canonical.resampled(specs[0].spacing_mm).shape)
    body = body_box(source, min(spec.hu_window[0] for spec in specs))
    box = None if body is None else on_grid(body, to_zyx(source.canonical.shape), grid)
    return WindowPlan.over(grid, to_zyx(specs[0].patch), overlap, box)


def _require_ensemble(specs: Sequence[ModelSpec]) -> ModelSpec:
    """The first of `specs`, after checking that all agree on organs, spacing and patch."""
    if not specs:
        raise InvalidInput("an ensemble needs at least one model")
    first = specs[0]
    for spec in specs[1:]:
        for what in ("organs", "spacing_mm", "patch"):
            if getattr(spec, what) != getattr(first, what):
                raise InvalidInput(
                    f"models {first.name} and {spec.name} differ in {what}: no common windows",
                    expected=getattr(first, what),
                    got=getattr(spec, what),
                    remedy="score with models of one grid",
                )
    return first


@dataclass
class _Pending:
    """A window in flight, and the answer of each model that predicts it."""

    window: Window
    answers: dict[int, Future[NDArray[np.uint8]]]


def _kernel_threads(pending: Iterable[_Pending | int], most: int) -> int:
    """One while a window is in flight, since the models may need the other cores; else `most`."""
    busy = any(
        not answer.done()
        for window in pending
        if isinstance(window, _Pending)
        for answer in window.answers.values()
    )
    return 1 if busy else most


class AttentionRun(Iterator[GridSlab]):
    """One run over one CT: iterate over the slabs, then read the `summary`.

    On a CPU the models share the cores with the kernels. A kernel on all cores would displace every
    model at once, thousands of times, for results that are not needed yet; so kernels take one core
    while any model has work, and all cores once the models are idle.

    To end the iteration early, call `close` or let the run go out of scope.
    """

    def __init__(
        self,
        source: CtSource,
        specs: tuple[ModelSpec, ...],
        predictor: Predictor,
        reading: Reading,
        *,
        channels: list[int],
        labels: tuple[int, ...],
        overlap: float,
        windows_in_flight: int,
        slab_slices: int,
        threads: int | None,
        compute: Compute,
        on_progress: ProgressCallback | None,
        cancelled: threading.Event | None,
    ) -> None:
        grid = source.canonical.resampled(specs[0].spacing_mm)
        native = to_zyx(source.canonical.shape)
        self._grid = to_zyx(grid.shape)
        self._grid_voxel_ml = grid.voxel_ml
        self._overlap = overlap
        self._source = source
        self._specs = specs
        self._predictor = predictor
        self._reading = reading
        self._channels = channels
        self._windows_in_flight = windows_in_flight
        self._slab_slices = slab_slices
        self._on_progress = on_progress
        self._cancelled = cancelled or threading.Event()
        self._axes = source.geometry.axis_map
        x, y, z = self._axes.flip
        self._compute = compute
        self._pending: deque[_Pending | int] = deque()  # an int starts that z-row
        # Bound to what is in flight, not to this run: in a cycle, buffers of gigabytes would
        # outlive the run until the interpreter happens to look for cycles.
        self._kernel_threads = partial(
            _kernel_threads, self._pending, available_threads() if threads is None else threads
        )
        self._fuser = compute.open_fuser(reading, self._kernel_threads)
        self._native = NativeGrid(
            self._grid, native, labels,
            flips=(z, y, x), slab_slices=slab_slices, threads=self._kernel_threads,
        )  # fmt: skip
        self._done = self._air = 0
        self._predict_s = 0.0
        self._finished = False
        self._slabs = self._run()

    def __next__(self) -> GridSlab:
        """The next slab.

        Raises:
            CancelledError: the run was cancelled.
            Exception: raised by reading the CT or by a model; passed on unchanged.
        """
        return next(self._slabs)

    def close(self) -> None:
        """Ends the run and abandons the answers that are still to come."""
        self._slabs.close()

    @property
    def summary(self) -> AttentionSummary:
        """Sizes and counts of the whole CT.

        Raises:
            RuntimeError: not every slab has been taken yet.
        """
        if not self._finished:
            raise RuntimeError("the summary is known once every slab was taken")
        geometry = self._source.geometry
        paper = self._reading is Reading.PAPER
        models, counts = len(self._specs), self._fuser.counts
        disagreements, expected = disagreement(counts, models), mean_probability_sum(counts, models)
        organs = []
        for channel in self._channels:
            voxels = (
                float(self._native.attention_sum[channel]) * ATTENTION_SCALE
                if paper
                else float(self._native.attended[channel])
            )
            organs.append(
                OrganScore(
                    organ=self._specs[0].organs[channel],
                    attention_voxels=voxels,
                    attention_ml=voxels * geometry.voxel_ml,
                    pseudo_label_ml=float(self._native.labelled[channel]) * geometry.voxel_ml,
                    disagreement=float(disagreements[channel]),
                    expected_ml=float(expected[channel]) * self._grid_voxel_ml,
                )
            )
        return AttentionSummary(
            organs=tuple(organs),
            windows=self._done - self._air,
            windows_air=self._air,
            predict_s=self._predict_s,
        )

    @cached_property
    def _plan(self) -> WindowPlan:
        """See `plan_windows`."""
        return plan_windows(self._source, self._specs, self._overlap)

    @cached_property
    def _blender(self) -> WindowBlender:
        models, organs = len(self._specs), len(self._specs[0].organs)
        return self._compute.open_blender(self._plan, models, organs, self._kernel_threads)

    def _run(self) -> Generator[GridSlab, None, None]:
        try:
            ct = ModelGridReader(self._source, self._grid, self._slab_slices)
            in_flight = 0
            for k in range(self._plan.rows):
                block = ct.read(*self._plan.z_range(k))
                self._pending.append(k)
                for window in self._plan.row(k):
                    # Before submitting: a predictor without free buffers would block there, where
                    # neither a cancellation nor the timing of the wait is noticed.
                    while in_flight >= self._windows_in_flight:
                        in_flight -= isinstance(self._pending[0], _Pending)
                        yield from self._collect()
                    in_flight += self._submit(window, extract_window(block, window, self._plan))
            while self._pending:
                yield from self._collect()
            yield from self._fuse_settled(self._plan.rows - 1)
            yield from self._fuse_settled(self._plan.rows)
            yield from self._to_native(self._fuser.finish())
            self._finished = True
        finally:
            self._abandon()

    def _submit(self, window: Window, voxels: NDArray[np.float32]) -> bool:
        """Sends a window to the models for which it is not all air; True if there is one."""
        self._check_cancelled()
        brightest = float(voxels.max())
        answers = {
            model: self._predictor.submit(spec, voxels)
            for model, spec in enumerate(self._specs)
            if brightest > spec.hu_window[0]
        }
        air = len(self._specs) - len(answers)
        self._air += air
        if air:
            self._progress(air)
        if answers:
            self._pending.append(_Pending(window, answers))
        return bool(answers)

    def _collect(self) -> Iterator[GridSlab]:
        """Blends the oldest window in flight, or starts the next z-row, which completes slabs."""
        oldest = self._pending[0]
        if isinstance(oldest, int):
            yield from self._fuse_settled(oldest - 1)
            self._blender.open_row(oldest)
        else:
            for model, answer in oldest.answers.items():
                self._blender.add(oldest.window, model, self._wait(answer))
                self._progress(1)
        self._pending.popleft()

    def _wait(self, answer: Future[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        began = time.monotonic()
        try:
            while not wait((answer,), timeout=CANCEL_POLL_S).done:
                self._check_cancelled()
            return answer.result()
        finally:
            self._predict_s += time.monotonic() - began

    def _fuse_settled(self, row: int) -> Iterator[GridSlab]:
        """Fuses the slices that no window after z-row `row` touches; see `WindowPlan.settled`."""
        stop = self._plan.settled(row)
        start = 0 if row < 0 else self._plan.settled(row - 1)
        for at in range(start, stop, self._slab_slices):
            self._check_cancelled()
            soft = self._blender.read(min(stop, at + self._slab_slices))
            yield from self._to_native(self._fuser.push(soft))

    def _to_native(self, fused: Fused) -> Iterator[GridSlab]:
        # No variable may hold a slab here, or it would stay alive while the next one is made: slabs
        # are the largest blocks of memory. Consumers `del` theirs for the same reason.
        slabs = self._native.push(fused) if fused.slices else ()
        yield from map(self._in_file_order, slabs)

    def _in_file_order(self, slab: NativeSlab) -> GridSlab:
        """A canonical slab ``[z, y, x]``, whose directions are the file's already, in file order
        ``[i, j, k]``."""
        source = self._axes.source
        # Canonical axis a lies at 2 − a of z, y, x.
        order = [2 - int(axis) for axis in np.argsort(source)]
        start, stop = slab.start, slab.stop
        if self._axes.flip[2]:
            slices = self._source.canonical.shape[2]
            start, stop = slices - stop, slices - start
        # Reversed, then transposed back: the first file axis is fastest in memory, as on the wire.
        label = np.ascontiguousarray(slab.label.transpose(order[::-1])).transpose(2, 1, 0)
        attention = slab.attention
        if self._channels != list(range(len(attention))):
            attention = attention[self._channels]
        turned = attention.transpose(0, *(1 + axis for axis in order[::-1]))
        return GridSlab(
            axis=source[2],
            start=start,
            stop=stop,
            attention=np.ascontiguousarray(turned).transpose(0, 3, 2, 1),
            label=label,
        )

    def _progress(self, predictions: int) -> None:
        self._done += predictions
        if self._on_progress is not None:
            self._on_progress(self._done, len(self._plan) * len(self._specs))

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise CancelledError

    def _abandon(self) -> None:
        """Abandons the answers that are still to come."""
        for pending in self._pending:
            if isinstance(pending, _Pending):
                for answer in pending.answers.values():
                    answer.cancel()
        self._pending.clear()
