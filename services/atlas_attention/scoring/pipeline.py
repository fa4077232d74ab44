"""One CT and an ensemble in, attention and pseudo labels on the CT's own grid out, slab by slab.

    CT slabs → model's grid → windows → every model → blend → fuse → CT's grid → file's axis order

Members of different grids or patches form groups, each with windows and blending of its own; what
they blend is brought to one fusion grid (`members`, `fusion_grid`). Groups advance in step.

Each stage holds a few slices at most, so memory depends on the size of a slice and the depth of a
window, not on the number of slices. From blending on, all stages compute in integers: the result is
the same to the bit whatever the order of models and answers, and wherever slabs are cut.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from typing import Protocol

import numpy as np
from atlas_core.errors import ConfigurationError
from atlas_core.geometry import Float3
from atlas_core.model_spec import MAX_MODEL_STREAMS, ModelRef, ModelSpec
from atlas_core.organs import OrganScheme
from atlas_core.records import OrganScore, Reading
from numpy.typing import NDArray

from atlas_attention.fusion import (
    ATTENDED_FROM,
    ATTENTION_SCALE,
    DEFAULT_OVERLAP,
    Box,
    Compute,
    CpuCompute,
    Fused,
    PanelFuser,
    SoftPredictions,
    Window,
    WindowPlan,
    available_threads,
)
from atlas_attention.scoring.body_box import body_box
from atlas_attention.scoring.group_run import (
    Flips,
    GroupRun,
    read_panels,
    rows_in_step,
    window_plan,
)
from atlas_attention.scoring.locating import Located, locate
from atlas_attention.scoring.member_labels import MemberLabels
from atlas_attention.scoring.members import FusionPlan, fusion_plan
from atlas_attention.scoring.model_grid import CtSource, to_zyx
from atlas_attention.scoring.native_grid import NativeGrid, NativeSlab, default_slab_slices

CANCEL_POLL_S = 0.1
"""How soon a cancelled call stops waiting for the models, in seconds."""

ANSWERS_BYTES = 1 << 29
"""Most memory of the answers to windows in flight, by default: those of five models that know 117
organs among them take a quarter of a gigabyte for each window of 128³."""

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
class MemberSlab:
    """Part of the label map of one member, as in `GridSlab`.

    Attributes:
        member: its index among the models.
        axis, start, stop, label: as in `GridSlab`.
    """

    member: int
    axis: int
    start: int
    stop: int
    label: NDArray[np.uint8]


MemberCallback = Callable[[MemberSlab], None]
"""Called with every slab of the label map of every member."""


@dataclass(frozen=True)
class AttentionSummary:
    """Attention sizes, pseudo label volumes and counts of a whole CT.

    Attributes:
        organs: attention size and pseudo label volume of every attention channel, in order. The
            size is the sum of attention over the CT's voxels, or in the reading `released` the
            number of voxels with any. Disagreement and expected volume are counted on
            the fusion grid.
        fusion_spacing_mm: of the grid where the models met, along canonical x, y, z.
        silent: models that found no organ anywhere.
        windows: windows predicted, of all models together.
        windows_air: windows skipped because they hold nothing but air, of all models together.
        predict_s: seconds spent waiting for the models.
        left_out: share of the body's box where no window was laid, since locating ruled it out.
    """

    organs: tuple[OrganScore, ...]
    fusion_spacing_mm: Float3
    silent: tuple[ModelRef, ...]
    windows: int
    windows_air: int
    predict_s: float
    left_out: float


def attend(
    source: CtSource,
    specs: Sequence[ModelSpec],
    predictor: Predictor,
    reading: Reading = Reading.PAPER,
    organs: Sequence[str] | None = None,
    *,
    scheme: OrganScheme,
    fusion_spacing_mm: Float3 | None = None,
    overlap: float = DEFAULT_OVERLAP,
    windows_in_flight: int | None = None,
    slab_slices: int | None = None,
    threads: int | None = None,
    compute: Compute | None = None,
    locator: ModelSpec | None = None,
    on_progress: ProgressCallback | None = None,
    on_member: MemberCallback | None = None,
    cancelled: threading.Event | None = None,
) -> AttentionRun:
    """Attention maps and pseudo labels of one CT, as an iterator of slabs on its own grid.

    Args:
        source: the CT.
        specs: the ensemble: members of any grids, patches and organs.
        predictor: runs the models.
        reading: how soft predictions become attention.
        organs: attention channels wanted, in this order; None: all of the ensemble. Pseudo labels
            always weigh all organs of the ensemble against one another.
        scheme: label ids of the organs. Those that a model knows and the scheme does not take no
            part.
        fusion_spacing_mm: of the grid where the models meet, along x, y, z; None: see
            `FusionPlan.fusion_grid`.
        overlap: share that neighbouring windows have in common, per axis; for models that do not
            state their own.
        windows_in_flight: most windows with the models at once; None: see
            `default_windows_in_flight`.
        slab_slices: most slices that are read, fused and delivered at once; bounds memory. None:
            see `default_slab_slices`.
        threads: most threads of a kernel on the CPU; None: one per available core. While the models
            have work, a kernel runs on one: see `AttentionRun`.
        compute: where soft predictions are blended and fused; None: on the CPU.
        locator: looks first where organs can be, and windows are laid only there: see `locating`;
            None: they are laid over the whole body.
        on_progress: see `ProgressCallback`.
        on_member: wants the label map of each member, see `member_labels`; None: they are not made.
        cancelled: once set, the run stops with `concurrent.futures.CancelledError`.

    Raises:
        InvalidInput, LimitExceeded: an ensemble that cannot be; see `members.fusion_plan`.
        UnknownLabel: an organ that no model of the ensemble or `scheme` knows.
    """
    members = fusion_plan(specs, scheme, overlap)
    known = scheme.select(members.organs)
    chosen = members.organs if organs is None else tuple(organs)
    channels = [members.organs.index(known[name].name) for name in chosen]
    columns, rows, _ = source.canonical.shape
    return AttentionRun(
        source, members, predictor, reading,
        fusion_spacing_mm=fusion_spacing_mm, channels=channels, labels=known.labels,
        windows_in_flight=windows_in_flight or default_windows_in_flight(specs),
        slab_slices=slab_slices or default_slab_slices(len(members.organs), columns * rows),
        threads=threads, compute=compute or CpuCompute(), locator=locator,
        on_progress=on_progress, on_member=on_member, cancelled=cancelled,
    )  # fmt: skip


def default_windows_in_flight(specs: Sequence[ModelSpec] = ()) -> int:
    """Windows that keep the models of this machine busy: one per core, at most four, being
    predicted, and one more waiting; fewer, but two, if their answers would take more than
    `ANSWERS_BYTES`."""
    most = min(available_threads(), MAX_MODEL_STREAMS) + 1
    answer_bytes = sum(math.prod(spec.patch) * len(spec.organs) for spec in specs)
    return max(2, min(most, ANSWERS_BYTES // max(1, answer_bytes)))


def plan_windows(source: CtSource, specs: Sequence[ModelSpec], overlap: float) -> WindowPlan:
    """Where the windows of models of one grid lie in a CT: over the body (see `body_box`), or over
    the whole grid if nothing but air is found."""
    spec = specs[0]
    patch, body = to_zyx(spec.patch), _body(source, specs)
    return window_plan(source, spec.spacing_mm, patch, overlap, body, spec.windows)


def _body(source: CtSource, specs: Sequence[ModelSpec]) -> Box | None:
    return body_box(source, min(spec.hu_window[0] for spec in specs))


@dataclass
class _Pending:
    """A window in flight, mirrored along `flips`, and the answer of each model that predicts it."""

    run: GroupRun
    window: Window
    flips: Flips
    answers: dict[int, Future[NDArray[np.uint8]]]


@dataclass
class _Row:
    """The windows that follow lie in z-row `k` of a group."""

    run: GroupRun
    k: int


def _kernel_threads(pending: Iterable[_Pending | _Row], most: int) -> int:
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
        members: FusionPlan,
        predictor: Predictor,
        reading: Reading,
        *,
        fusion_spacing_mm: Float3 | None,
        channels: list[int],
        labels: tuple[int, ...],
        windows_in_flight: int,
        slab_slices: int,
        threads: int | None,
        compute: Compute,
        locator: ModelSpec | None,
        on_progress: ProgressCallback | None,
        on_member: MemberCallback | None,
        cancelled: threading.Event | None,
    ) -> None:
        fusion_grid = members.fusion_grid(source.canonical, fusion_spacing_mm)
        native = to_zyx(source.canonical.shape)
        self._grid = to_zyx(fusion_grid.shape)
        self._grid_spacing_mm = fusion_grid.spacing_mm
        self._grid_voxel_ml = fusion_grid.voxel_ml
        self._source = source
        self._members = members
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
        self._locator = locator
        self._pending: deque[_Pending | _Row] = deque()
        # Bound to what is in flight, not to this run: in a cycle, buffers of gigabytes would
        # outlive the run until the interpreter happens to look for cycles.
        self._kernel_threads = partial(
            _kernel_threads, self._pending, available_threads() if threads is None else threads
        )
        self._alone = members.is_alone_on(fusion_grid, source.canonical)
        fused_by = compute if self._alone else CpuCompute()
        threads_now = self._kernel_threads
        self._fuser = PanelFuser(
            members.panels, reading, partial(fused_by.open_fuser, threads=threads_now), threads_now
        )
        open_grid = partial(
            NativeGrid, self._grid, native, labels,
            flips=(z, y, x), slab_slices=slab_slices, threads=self._kernel_threads,
            attended_from=1 if reading.counts_voxels else ATTENDED_FROM,
        )  # fmt: skip
        self._native = open_grid()
        self._on_member = on_member
        self._member_labels = MemberLabels(members.panels, len(labels), open_grid)
        self._fused = 0  # slices of the fusion grid
        self._predictions = self._done = self._air = 0
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
        voices, disagreements = self._fuser.voices, self._fuser.disagreement()
        expected = self._fuser.mean_probability_sum()
        organs = []
        for channel in self._channels:
            attended = float(self._native.attended[channel])
            total = float(self._native.attention_sum[channel])
            voxels = attended if self._reading.counts_voxels else total * ATTENTION_SCALE
            organs.append(
                OrganScore(
                    organ=self._members.organs[channel],
                    attention_voxels=voxels,
                    attention_ml=voxels * geometry.voxel_ml,
                    pseudo_label_ml=float(self._native.labelled[channel]) * geometry.voxel_ml,
                    disagreement=float(disagreements[channel]),
                    expected_ml=float(expected[channel]) * self._grid_voxel_ml,
                    voices=int(voices[channel]),
                    attended_ml=attended * geometry.voxel_ml,
                )
            )
        return AttentionSummary(
            organs=tuple(organs),
            fusion_spacing_mm=self._grid_spacing_mm,
            silent=tuple(
                run.specs[member].ref
                for run in self._runs
                for member, byte in run.constant.items()
                if byte == 0
            ),
            windows=self._done - self._air,
            windows_air=self._air,
            predict_s=self._predict_s,
            left_out=self._located.left_out,
        )

    def _run(self) -> Generator[GridSlab, None, None]:
        try:
            self._predictions = self._located.windows + sum(r.predictions for r in self._runs)
            if self._located.windows:
                self._progress(self._located.windows)
            in_flight = 0
            for run, k in rows_in_step(self._runs):
                block = run.read_row(k)
                self._pending.append(_Row(run, k))
                for window, flips in product(run.plan.row(k), run.mirrorings):
                    # Before submitting: a predictor without free buffers would block there, where
                    # neither a cancellation nor the timing of the wait is noticed.
                    while in_flight >= self._windows_in_flight:
                        in_flight -= isinstance(self._pending[0], _Pending)
                        yield from self._collect()
                    in_flight += self._submit(run, window, flips, run.cut(block, window, flips))
            while self._pending:
                yield from self._collect()
            for beyond in (0, 1):  # below the upper edge of all windows, and above it
                for run in self._runs:
                    run.settle(run.plan.rows - 1 + beyond)
                yield from self._fuse_settled()
            yield from self._to_native(self._fuser.finish())
            self._require_answers()
            self._finished = True
        finally:
            self._abandon()

    @cached_property
    def _runs(self) -> list[GroupRun]:
        body = self._located.box
        return [
            GroupRun(
                self._source, self._members, group, body, self._grid,
                compute=self._compute, alone=self._alone, slab_slices=self._slab_slices,
                threads=self._kernel_threads,
            )
            for group in self._members.groups
        ]  # fmt: skip

    @cached_property
    def _located(self) -> Located:
        """Where windows are to be laid: over the body, or where the locator sees organs."""
        body = _body(self._source, self._members.specs)
        if self._locator is None or body is None:
            return Located(body, 0.0, 0)
        found = locate(
            self._source, self._locator, self._members.organs, body, self._predictor.submit,
            self._wait, windows_in_flight=self._windows_in_flight,
        )  # fmt: skip
        return found if found.box is not None else Located(body, 0.0, found.windows)

    def _submit(
        self, run: GroupRun, window: Window, flips: Flips, voxels: NDArray[np.float32]
    ) -> bool:
        """Sends a window to the models for which it is not all air; True if there is one."""
        self._check_cancelled()
        brightest = float(voxels.max())
        members = run.members_of(flips)
        answers = {
            member: self._predictor.submit(run.specs[member], voxels)
            for member in members
            if brightest > run.specs[member].hu_window[0]
        }
        air = len(members) - len(answers)
        self._air += air
        if air:
            self._progress(air)
        if answers:
            self._pending.append(_Pending(run, window, flips, answers))
        return bool(answers)

    def _collect(self) -> Iterator[GridSlab]:
        """Blends the oldest window in flight, or starts the next z-row, which completes slabs."""
        oldest = self._pending[0]
        if isinstance(oldest, _Row):
            oldest.run.settle(oldest.k - 1)
            yield from self._fuse_settled()
            oldest.run.open_row(oldest.k)
        else:
            for member, answer in oldest.answers.items():
                oldest.run.add(oldest.window, member, oldest.flips, self._wait(answer))
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

    def _fuse_settled(self) -> Iterator[GridSlab]:
        """Fuses the slices that no window to come touches, of any group."""
        ready = min(run.ready for run in self._runs)
        while self._fused < ready:
            self._check_cancelled()
            start, self._fused = self._fused, min(ready, self._fused + self._slab_slices)
            soft = self._read(start, self._fused)
            if self._on_member is not None:
                self._tell_members(soft, self._on_member)
            yield from self._to_native(self._fuser.push(soft))

    def _read(self, start: int, stop: int) -> list[SoftPredictions]:
        """Slices ``[start, stop)`` of the fusion grid, of each panel."""
        if self._alone:
            return [self._runs[0].read_blended(stop)]
        return read_panels(self._runs, self._members.panels, stop - start, stop)

    def _tell_members(self, soft: list[SoftPredictions], tell: MemberCallback) -> None:
        # Where the models answer on the fusion grid itself, their blend may lie on the GPU.
        here = [self._compute.to_host(part) for part in soft] if self._alone else soft
        for member, slab in self._member_labels.push(here):
            start, stop, label = self._label_in_file_order(slab)
            tell(MemberSlab(member, self._axes.source[2], start, stop, label))

    def _to_native(self, fused: Fused) -> Iterator[GridSlab]:
        # No variable may hold a slab here, or it would stay alive while the next one is made: slabs
        # are the largest blocks of memory. Consumers `del` theirs for the same reason.
        slabs = self._native.push(fused) if fused.slices else ()
        yield from map(self._in_file_order, slabs)

    def _in_file_order(self, slab: NativeSlab) -> GridSlab:
        """A canonical slab ``[z, y, x]``, whose directions are the file's already, in file order
        ``[i, j, k]``."""
        start, stop, label = self._label_in_file_order(slab)
        attention = slab.attention
        if self._channels != list(range(len(attention))):
            attention = attention[self._channels]
        turned = attention.transpose(0, *(1 + axis for axis in self._file_order[::-1]))
        return GridSlab(
            axis=self._axes.source[2],
            start=start,
            stop=stop,
            attention=np.ascontiguousarray(turned).transpose(0, 3, 2, 1),
            label=label,
        )

    @cached_property
    def _file_order(self) -> list[int]:
        # Canonical axis a lies at 2 − a of z, y, x.
        return [2 - int(axis) for axis in np.argsort(self._axes.source)]

    def _label_in_file_order(self, slab: NativeSlab) -> tuple[int, int, NDArray[np.uint8]]:
        """Start, stop and label of a slab along the file's axes."""
        start, stop = slab.start, slab.stop
        if self._axes.flip[2]:
            slices = self._source.canonical.shape[2]
            start, stop = slices - stop, slices - start
        # Reversed, then transposed back: the first file axis is fastest in memory, as on the wire.
        turned = np.ascontiguousarray(slab.label.transpose(self._file_order[::-1]))
        return start, stop, turned.transpose(2, 1, 0)

    def _require_answers(self) -> None:
        """Refuses a model that has answered every window of the CT with one and the same byte."""
        for run in self._runs:
            for member, byte in run.constant.items():
                if byte:
                    raise ConfigurationError(
                        f"model {run.specs[member].ref} answered {byte} in every voxel of the CT",
                        expected="soft predictions that depend on the CT",
                        got=f"p = {byte / 255:.3f} for every organ",
                        remedy="take it out of the ensemble, and import or export it again",
                    )

    def _progress(self, predictions: int) -> None:
        self._done += predictions
        if self._on_progress is not None:
            self._on_progress(self._done, self._predictions)

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
