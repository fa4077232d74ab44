"""A whole CT through the pipeline, against a straightforward whole-volume implementation."""

from __future__ import annotations

import gc
import threading
import tracemalloc
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pytest
from atlas_attention.fusion import AIR_HU, ATTENTION_SCALE, CpuCompute, Threads, WindowPlan, fuse
from atlas_attention.fusion.blending import Blender
from atlas_attention.fusion.compute import GpuCompute
from atlas_attention.scoring import GridSlab, Predictor, attend, plan_windows
from atlas_attention.scoring.native_grid import NativeGrid
from atlas_attention.scoring.pipeline import AttentionSummary
from atlas_core.errors import InvalidInput, UnknownLabel
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging.resampling import resample_image
from atlas_core.model_spec import ModelSpec
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.records import Reading
from host_device import HostDevice
from numpy.typing import NDArray

ORGANS = ("liver", "spleen", "aorta")


@dataclass
class ArraySource:
    """A CT in memory, in its own axis order ``[i, j, k]``; records what is read."""

    voxels: NDArray[np.float32]
    geometry: VolumeGeometry
    most_slices: int = 0

    @property
    def canonical(self) -> VolumeGeometry:
        return self.geometry.canonical()

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        self.most_slices = max(self.most_slices, stop - start)
        turned = self.geometry.axis_map.to_canonical(self.voxels).transpose(2, 1, 0)
        assert 0 <= start < stop <= len(turned)
        return np.ascontiguousarray(turned[start:stop])


@dataclass
class RulePredictor:
    """Answers with a pure function of the window, from threads that finish in any order."""

    rule: Callable[[ModelSpec, NDArray[np.float32]], NDArray[np.uint8]]
    threads: int = 3
    outstanding: int = 0
    most_outstanding: int = 0
    calls: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(self.threads)

    def submit(self, spec: ModelSpec, window: NDArray[np.float32]) -> Future[NDArray[np.uint8]]:
        with self._lock:
            self.calls += 1
            self.outstanding += 1
            self.most_outstanding = max(self.most_outstanding, self.outstanding)
        answer = self._pool.submit(self.rule, spec, window)
        answer.add_done_callback(self._returned)
        return answer

    def shutdown(self) -> None:
        """Waits until every answer is given or cancelled."""
        self._pool.shutdown()

    def _returned(self, _: object) -> None:
        with self._lock:
            self.outstanding -= 1


def spec(name: str, patch: tuple[int, int, int] = (16, 14, 12), **changes: object) -> ModelSpec:
    values = {
        "name": name, "version": 0, "architecture": "rule", "organs": ORGANS,
        "spacing_mm": (2.0, 2.0, 3.0), "patch": patch, "hu_window": (-175.0, 250.0),
        "sha256": "0" * 64,
    } | changes  # fmt: skip
    return ModelSpec.model_validate(values)


ENSEMBLE = tuple(spec(name) for name in ("swin", "nnunet", "unet"))


def contextual(spec: ModelSpec, window: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Soft predictions that depend on the voxel, its neighbours and its place in the window."""
    seed = sum(spec.name.encode())
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in window.shape), indexing="ij")
    blurred = (window + np.roll(window, 1, 0) + np.roll(window, 1, 1) + np.roll(window, 1, 2)) / 4
    soft = [
        np.tanh((blurred - 60 * c) / 40 + 0.3 * np.sin(seed + c) + 0.2 * (z + y * x)) / 2 + 0.5
        for c in range(len(spec.organs))
    ]
    return np.rint(255 * np.where(np.stack(soft) > 0.05, np.stack(soft), 0)).astype(np.uint8)


def voxelwise(spec: ModelSpec, window: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Soft predictions that depend on the voxel alone: flips commute with them."""
    seed = sum(spec.name.encode())
    soft = [
        np.tanh((window - 60 * c) / 50 + np.sin(seed + c)) / 2 + 0.5 for c in range(len(ORGANS))
    ]
    return np.rint(255 * np.stack(soft)).astype(np.uint8)


def make_source(
    shape: tuple[int, int, int] = (37, 33, 29), seed: int = 0, axes: str = "RAS"
) -> ArraySource:
    """A lump of tissue in air, stored along `axes`."""
    rng = np.random.default_rng(seed)
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    voxels = np.where(sum(g**2 for g in grid) < 0.8, 120.0, -1000.0)
    voxels += 60 * np.sin(7 * grid[0] + 3 * grid[2]) + rng.normal(scale=10, size=shape)
    canonical = VolumeGeometry.from_array(shape, np.diag([1.5, 1.4, 3.0, 1.0]))
    order = ["RAS".index(a) if a in "RAS" else "LPI".index(a) for a in axes]
    back = [a in "LPI" for a in axes]
    matrix = np.eye(4)
    origin = canonical.matrix[:3, 3].copy()
    for file_axis, (axis, flipped) in enumerate(zip(order, back, strict=True)):
        step = canonical.matrix[:3, axis]
        matrix[:3, file_axis] = -step if flipped else step
        origin += step * (shape[axis] - 1) * flipped
    matrix[:3, 3] = origin
    stored = voxels.transpose(order)[tuple(slice(None, None, -1 if b else 1) for b in back)]
    geometry = VolumeGeometry.from_array(stored.shape, matrix)
    return ArraySource(np.ascontiguousarray(stored, np.float32), geometry)


@dataclass
class Result:
    attention: NDArray[np.uint8]
    label: NDArray[np.uint8]
    summary: AttentionSummary
    slabs: list[GridSlab]


def run(
    source: ArraySource,
    predictor: Predictor,
    specs: tuple[ModelSpec, ...] = ENSEMBLE,
    **options: object,
) -> Result:
    """The whole run, its slabs put together; they must cover the grid exactly once."""
    attending = attend(source, specs, predictor, **options, scheme=ABDOMEN_ATLAS)  # type: ignore[arg-type]
    slabs = list(attending)
    channels = len(slabs[0].attention)
    attention = np.zeros((channels, *source.geometry.shape), np.uint8)
    label = np.zeros(source.geometry.shape, np.uint8)
    seen = np.zeros(source.geometry.shape, np.uint8)
    for slab in slabs:
        part = [slice(None)] * 3
        part[slab.axis] = slice(slab.start, slab.stop)
        attention[:, *part] = slab.attention
        label[tuple(part)] = slab.label
        seen[tuple(part)] += 1
        assert slab.label.flags.f_contiguous
        assert all(organ.flags.f_contiguous for organ in slab.attention)
    assert (seen == 1).all()
    return Result(attention, label, attending.summary, slabs)


def whole_volume(
    source: ArraySource, rule: Callable[..., NDArray[np.uint8]], reading: Reading, overlap: float
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The same in NumPy, nothing in slabs: canonical attention ``[organ, z, y, x]`` and label."""
    grid = source.canonical.resampled(ENSEMBLE[0].spacing_mm)
    ct = resample_image(source.voxels, source.geometry, grid).transpose(2, 1, 0)
    patch = ENSEMBLE[0].patch[::-1]
    plan = plan_windows(source, ENSEMBLE, overlap)
    assert plan.grid == ct.shape
    hang = [max(0, -starts[0]) for starts in plan.starts]
    pad = [(h, max(0, p - n - h)) for h, p, n in zip(hang, patch, ct.shape, strict=True)]
    padded = np.pad(ct, pad, constant_values=AIR_HU)
    sums = np.zeros((len(ENSEMBLE), len(ORGANS), *padded.shape), np.int64)
    weights = np.zeros(padded.shape, np.int64)
    for k in range(plan.rows):
        for window in plan.row(k):
            place = tuple(
                slice(s + h, s + h + p) for s, h, p in zip(window.start, hang, patch, strict=True)
            )
            z, y, x = (share[at] for share, at in zip(plan.shares, window.at, strict=True))
            zy = z[:, None, None] * y[:, None] * 257
            weight = np.minimum(np.floor(zy * x), 255).astype(np.int64)
            weights[place] += weight
            if padded[place].max() > -175:
                for n, one in enumerate(ENSEMBLE):
                    sums[n, :, *place] += weight * rule(one, np.ascontiguousarray(padded[place]))
    inside = tuple(slice(h, h + n) for h, n in zip(hang, ct.shape, strict=True))
    soft = (2 * sums + weights) // np.maximum(2 * weights, 1)
    fused = fuse(np.ascontiguousarray(soft[:, :, *inside]).astype(np.uint8), reading)
    labels = ABDOMEN_ATLAS.select(ORGANS).labels
    native = NativeGrid(ct.shape, source.canonical.shape[::-1], labels)
    slabs = list(native.push(fused))
    return np.concatenate([s.attention for s in slabs], 1), np.concatenate([s.label for s in slabs])


def assert_same(result: Result, expected: Result) -> None:
    assert (result.attention == expected.attention).all()
    assert (result.label == expected.label).all()
    assert result.summary.organs == expected.summary.organs


@pytest.fixture(scope="module")
def predictor() -> RulePredictor:
    return RulePredictor(contextual)


@pytest.mark.parametrize("reading", list(Reading))
@pytest.mark.parametrize(
    "shape, overlap",
    [((37, 33, 29), 0.5), ((9, 40, 61), 0.3), ((50, 12, 5), 0.75), ((30, 30, 40), 0.0)],
)
def test_slabs_equal_the_whole_volume(
    predictor: RulePredictor, reading: Reading, shape: tuple[int, int, int], overlap: float
) -> None:
    source = make_source(shape)
    result = run(source, predictor, reading=reading, overlap=overlap)
    attention, label = whole_volume(source, contextual, reading, overlap)
    assert (result.attention == attention.transpose(0, 3, 2, 1)).all()
    assert (result.label == label.transpose(2, 1, 0)).all()
    assert result.label.any() and result.attention.any()


@pytest.mark.parametrize("reading", list(Reading))
@pytest.mark.parametrize("slices", [1, 3, 1000])
def test_slab_size_changes_nothing(predictor: RulePredictor, reading: Reading, slices: int) -> None:
    source = make_source((29, 30, 33))
    expected = run(source, predictor, reading=reading)
    result = run(
        source, predictor, reading=reading, slab_slices=slices, windows_in_flight=1, threads=1
    )
    assert_same(result, expected)
    assert max(slab.stop - slab.start for slab in result.slabs) <= slices
    assert max(slab.stop - slab.start for slab in expected.slabs) <= 16


@pytest.mark.parametrize("reading", list(Reading))
def test_kernels_of_the_gpu_change_nothing(
    predictor: RulePredictor, reading: Reading, host_device: HostDevice
) -> None:
    source = make_source((29, 30, 33))
    expected = run(source, predictor, reading=reading, slab_slices=5)
    result = run(source, predictor, reading=reading, slab_slices=5, compute=GpuCompute(host_device))
    assert_same(result, expected)


class HeldBack:
    """Answers a window when the next one is asked for, or `let_go`."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[NDArray[np.uint8]], ModelSpec, NDArray[np.float32]]] = []

    def submit(self, spec: ModelSpec, window: NDArray[np.float32]) -> Future[NDArray[np.uint8]]:
        if self.waiting and self.waiting[-1][2] is not window:
            self.let_go()
        answer: Future[NDArray[np.uint8]] = Future()
        self.waiting.append((answer, spec, window))
        return answer

    def let_go(self) -> None:
        for answer, spec, window in self.waiting:
            answer.set_result(contextual(spec, window))
        self.waiting.clear()


@dataclass(frozen=True)
class CountedThreads(CpuCompute):
    """Notes before every kernel of the blender on how many threads it is to work, and whether a
    model was at work; then the models answer."""

    models: HeldBack
    seen: set[tuple[bool, int]] = field(default_factory=set)

    def open_blender(self, plan: WindowPlan, models: int, organs: int, threads: Threads) -> Blender:
        assert callable(threads)

        def counted() -> int:
            number = threads()
            self.seen.add((bool(self.models.waiting), number))
            self.models.let_go()
            return number

        return super().open_blender(plan, models, organs, counted)


def test_kernels_leave_the_cores_to_busy_models(predictor: RulePredictor) -> None:
    source, models = make_source(), HeldBack()
    compute = CountedThreads(models)
    result = run(source, models, windows_in_flight=2, threads=3, compute=compute)
    assert compute.seen == {(True, 1), (False, 3)}
    assert_same(result, run(source, predictor))


@pytest.mark.parametrize("reading", list(Reading))
def test_order_of_models_changes_nothing(predictor: RulePredictor, reading: Reading) -> None:
    expected = run(make_source(), predictor, reading=reading)
    turned = (ENSEMBLE[2], ENSEMBLE[0], ENSEMBLE[1])
    assert_same(run(make_source(), predictor, turned, reading=reading), expected)


@pytest.mark.parametrize("axes", ["LPS", "RAS", "IPR", "SLA", "PIR", "ARI"])
def test_axis_order_and_flips_of_the_file_change_nothing(
    predictor: RulePredictor, axes: str
) -> None:
    straight = make_source(axes="RAS")
    turned = make_source(axes=axes)
    assert turned.geometry.axis_codes == axes
    expected = run(straight, predictor)
    result = run(turned, predictor)
    back = turned.geometry.axis_map.to_canonical
    assert (back(result.label) == expected.label).all()
    for organ, reference in zip(result.attention, expected.attention, strict=True):
        assert (back(organ) == reference).all()
    assert result.summary.organs == expected.summary.organs


def test_flip_then_score_equals_score_then_flip() -> None:
    predictor = RulePredictor(voxelwise)
    source = make_source()
    mirrored = ArraySource(np.ascontiguousarray(source.voxels[::-1, ::-1, ::-1]), source.geometry)
    expected = run(source, predictor)
    result = run(mirrored, predictor)
    assert (result.attention[:, ::-1, ::-1, ::-1] == expected.attention).all()
    assert (result.label[::-1, ::-1, ::-1] == expected.label).all()


def test_identical_models_leave_uncertainty_and_overlap_only(predictor: RulePredictor) -> None:
    one = run(make_source(), predictor, ENSEMBLE[:1])
    same = run(make_source(), predictor, (ENSEMBLE[0],) * 3)
    assert (np.abs(one.attention.astype(int) - same.attention.astype(int)) <= 1).all()
    assert (one.label == same.label).all()


def test_requested_organs_come_in_the_requested_order(predictor: RulePredictor) -> None:
    everything = run(make_source(), predictor)
    some = run(make_source(), predictor, organs=["aorta", "liver"])
    assert (some.attention == everything.attention[[2, 0]]).all()
    assert (some.label == everything.label).all()
    assert some.summary.organs == tuple(everything.summary.organs[i] for i in (2, 0))


@pytest.mark.parametrize("reading", list(Reading))
def test_summary_matches_the_slabs(predictor: RulePredictor, reading: Reading) -> None:
    source = make_source()
    result = run(source, predictor, reading=reading)
    voxel_ml = source.geometry.voxel_ml
    for channel, organ in enumerate(result.summary.organs):
        given = result.attention[channel]
        size = (
            given.sum(dtype=int) * ATTENTION_SCALE
            if reading is Reading.PAPER
            else (given > 0).sum()
        )
        labelled = (result.label == ABDOMEN_ATLAS[organ.organ].label).sum()
        assert organ.organ == ORGANS[channel]
        assert organ.attention_voxels == pytest.approx(size)
        assert organ.attention_ml == pytest.approx(size * voxel_ml)
        assert organ.pseudo_label_ml == pytest.approx(labelled * voxel_ml)


def test_air_is_not_predicted_and_counts_as_nothing() -> None:
    predictor = RulePredictor(contextual)
    source = make_source((60, 30, 30))
    source.voxels[24:] = -1000.0
    source.voxels[20:, 10:20, :8] = 50.0  # an L: its box has corners without any of it
    progress: list[tuple[int, int]] = []
    result = run(source, predictor, on_progress=lambda done, total: progress.append((done, total)))
    plan = plan_windows(source, ENSEMBLE, 0.5)
    assert result.summary.windows == predictor.calls
    assert result.summary.windows_air > 0
    assert result.summary.windows + result.summary.windows_air == 3 * len(plan)
    assert progress[-1] == (3 * len(plan), 3 * len(plan))
    assert [done for done, _ in progress] == sorted(done for done, _ in progress)
    assert not result.attention[:, 45:, :, 25:].any() and not result.label[45:, :, 25:].any()


@pytest.mark.parametrize("axes", ["RAS", "LPI", "SAR"])
def test_windows_lie_only_over_the_body(axes: str) -> None:
    """With a table below that does not touch it, and air on all sides, above and below too."""
    air = make_source((70, 80, 90), axes="RAS")
    lump = make_source((31, 30, 29)).voxels
    air.voxels[:] = -1000.0
    air.voxels[21:52, 25:55, 30:59] = lump
    air.voxels[15:60, 4:6, 30:59] = 200.0
    turned = make_source((70, 80, 90), axes=axes)
    turned.voxels[:] = turned.geometry.axis_map.from_canonical(air.voxels)
    predictor = RulePredictor(contextual)
    result = run(turned, predictor, overlap=0.5)
    plan = plan_windows(turned, ENSEMBLE, 0.5)
    everywhere = WindowPlan.over(plan.grid, plan.patch, 0.5)
    assert 0 < result.summary.windows <= 3 * len(plan)
    assert 2 * len(plan) < len(everywhere)
    attention, label = whole_volume(turned, contextual, Reading.PAPER, 0.5)
    axis_map = turned.geometry.axis_map
    assert label.any()
    assert (axis_map.to_canonical(result.label).transpose(2, 1, 0) == label).all()
    for given, expected in zip(result.attention, attention, strict=True):
        assert (axis_map.to_canonical(given).transpose(2, 1, 0) == expected).all()


def test_only_air_gives_empty_maps() -> None:
    predictor = RulePredictor(contextual)
    source = make_source((20, 20, 20))
    source.voxels[:] = -1000.0
    result = run(source, predictor)
    assert predictor.calls == 0
    assert not result.attention.any() and not result.label.any()


def test_a_ct_that_is_on_the_model_grid_already() -> None:
    """The result is then what fusion says, untouched by interpolation."""
    geometry = VolumeGeometry.from_array((20, 21, 22), np.diag([2.0, 2.0, 3.0, 1.0]))
    source = ArraySource(make_source((20, 21, 22)).voxels, geometry)
    result = run(source, RulePredictor(voxelwise))
    ct = source.voxels.transpose(2, 1, 0)
    fused = fuse(np.stack([voxelwise(one, ct) for one in ENSEMBLE]))
    names = np.array([0, *ABDOMEN_ATLAS.select(ORGANS).labels])
    assert (result.attention == fused.attention.transpose(0, 3, 2, 1)).all()
    assert (result.label == names[fused.label].transpose(2, 1, 0)).all()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_slices() -> None:
    """What is held between slabs, and what is read and in flight at once, for 40 and 160 slices.

    The most of several runs: how many answers wait at once is up to the threads that give them.
    """
    held = {40: 0, 160: 0}
    for slices in (40, 160) * 8:
        predictor = RulePredictor(contextual)
        source = make_source((24, 24, slices))
        attending = attend(
            source, ENSEMBLE, predictor, Reading.RELEASED, windows_in_flight=4, scheme=ABDOMEN_ATLAS
        )
        tracemalloc.start()
        for _ in attending:
            pass
        held[slices] = max(held[slices], tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert predictor.most_outstanding <= 3 * 5
        assert source.most_slices <= 16
    assert held[160] < 1.15 * held[40]


@pytest.mark.parametrize("reading", list(Reading))
def test_a_slab_is_freed_before_the_next_is_made(reading: Reading) -> None:
    run = attend(
        make_source((24, 24, 60)),
        ENSEMBLE,
        RulePredictor(contextual),
        reading,
        scheme=ABDOMEN_ATLAS,
    )
    slabs = 0
    while (slab := next(run, None)) is not None:
        slabs += 1
        memory = weakref.ref(slab.attention.base)
        assert memory() is not None
        del slab
        assert memory() is None
    assert slabs > 1


def test_a_failing_model_fails_the_run_and_cancels_the_rest() -> None:
    def broken(spec: ModelSpec, window: NDArray[np.float32]) -> NDArray[np.uint8]:
        if spec.name == "unet":
            raise OSError("the model is gone")
        return contextual(spec, window)

    predictor = RulePredictor(broken)
    with pytest.raises(OSError, match="the model is gone"):
        run(make_source(), predictor)
    predictor.shutdown()
    assert predictor.outstanding == 0


def test_a_model_that_answers_in_another_shape_is_refused() -> None:
    predictor = RulePredictor(lambda spec, window: contextual(spec, window)[:2])
    with pytest.raises(InvalidInput, match=r"\[3, 12, 14, 16\]"):
        run(make_source(), predictor)


@pytest.mark.parametrize("slabs", [0, 1, 1000])
def test_a_run_that_is_closed_gives_its_buffers_back_at_once(slabs: int) -> None:
    """Not only when the interpreter looks for cycles, which an idle service never does."""
    gc.disable()
    try:
        run = attend(make_source(), ENSEMBLE, RulePredictor(contextual), scheme=ABDOMEN_ATLAS)
        for _ in zip(range(slabs), run, strict=False):
            pass
        buffers = weakref.ref(run._blender)
        run.close()
        del run
        assert buffers() is None
    finally:
        gc.enable()


def test_cancelling_stops_between_windows() -> None:
    cancelled = threading.Event()
    predictor = RulePredictor(contextual)

    def stop_after_ten(done: int, _: int) -> None:
        if done >= 10:
            cancelled.set()

    with pytest.raises(CancelledError):
        run(make_source(), predictor, cancelled=cancelled, on_progress=stop_after_ten)
    predictor.shutdown()
    assert predictor.outstanding == 0
    assert predictor.calls <= 10 + 3 * (6 + 2)


def test_cancelling_stops_waiting_for_a_model_that_hangs() -> None:
    cancelled = threading.Event()
    release = threading.Event()

    def hanging(spec: ModelSpec, window: NDArray[np.float32]) -> NDArray[np.uint8]:
        cancelled.set()
        assert release.wait(60)
        return contextual(spec, window)

    predictor = RulePredictor(hanging)
    with pytest.raises(CancelledError):
        run(make_source(), predictor, cancelled=cancelled)
    assert not release.is_set()  # the run ended while the model still hung
    release.set()
    predictor.shutdown()


def test_closing_early_cancels_what_is_in_flight() -> None:
    predictor = RulePredictor(contextual)
    attending = attend(make_source((24, 24, 80)), ENSEMBLE, predictor, scheme=ABDOMEN_ATLAS)
    next(attending)
    attending.close()
    predictor.shutdown()
    assert predictor.outstanding == 0
    with pytest.raises(RuntimeError, match="once every slab"):
        _ = attending.summary


@pytest.mark.parametrize(
    "changes",
    [{"organs": ("liver", "aorta")}, {"spacing_mm": (1.5, 1.5, 1.5)}, {"patch": (16, 16, 16)}],
)
def test_models_that_do_not_fit_together_are_refused(changes: dict[str, object]) -> None:
    other = spec("other", **changes)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=rf"swin and other differ in {next(iter(changes))}"):
        attend(make_source(), (*ENSEMBLE, other), RulePredictor(contextual), scheme=ABDOMEN_ATLAS)


def test_invalid_requests_are_refused() -> None:
    predictor = RulePredictor(contextual)
    with pytest.raises(InvalidInput, match="at least one model"):
        attend(make_source(), (), predictor, scheme=ABDOMEN_ATLAS)
    with pytest.raises(UnknownLabel, match="pancreas"):
        attend(make_source(), ENSEMBLE, predictor, organs=["pancreas"], scheme=ABDOMEN_ATLAS)
    with pytest.raises(UnknownLabel, match="tail"):
        attend(
            make_source(), (spec("odd", organs=("liver", "tail")),), predictor, scheme=ABDOMEN_ATLAS
        )
