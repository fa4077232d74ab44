"""A whole CT through the pipeline, against a straightforward whole-volume implementation."""

from __future__ import annotations

import gc
import threading
import tracemalloc
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field

import numpy as np
import pytest
from atlas_attention.fusion import ATTENTION_SCALE, CpuCompute, Threads, WindowPlan, fuse
from atlas_attention.fusion.blending import Blender
from atlas_attention.fusion.compute import GpuCompute
from atlas_attention.scoring import attend, plan_windows
from atlas_attention.scoring.native_grid import NativeGrid
from atlas_core.errors import ConfigurationError, InvalidInput, UnknownLabel
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging.resampling import resample_image
from atlas_core.model_spec import ModelSpec
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.records import Reading
from host_device import HostDevice
from numpy.typing import NDArray
from rule_models import (
    ENSEMBLE,
    ORGANS,
    ArraySource,
    Result,
    RulePredictor,
    blend,
    contextual,
    make_source,
    run,
    spec,
    voxelwise,
)


def whole_volume(
    source: ArraySource, rule: Callable[..., NDArray[np.uint8]], reading: Reading, overlap: float
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The same in NumPy, nothing in slabs: canonical attention ``[organ, z, y, x]`` and label."""
    grid = source.canonical.resampled(ENSEMBLE[0].spacing_mm)
    ct = resample_image(source.voxels, source.geometry, grid).transpose(2, 1, 0)
    plan = plan_windows(source, ENSEMBLE, overlap)
    assert plan.grid == ct.shape
    soft = blend(
        plan,
        ct,
        (len(ENSEMBLE), len(ORGANS)),
        lambda voxels: np.stack([rule(one, voxels) for one in ENSEMBLE]),
    )
    fused = fuse(soft, reading)
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
    # Nothing is three voxels thick on the models' grid where the CT is that narrow.
    thick = reading is not Reading.OPENED or min(shape) > 5
    assert result.label.any() and result.attention.any() == thick


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
        for answer, one, window in self.waiting:
            answer.set_result(contextual(one, window))
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
    alike = RulePredictor(lambda _, window: contextual(ENSEMBLE[0], window))
    same = run(make_source(), alike)
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
            (given > 0).sum()
            if reading is Reading.RELEASED
            else given.sum(dtype=int) * ATTENTION_SCALE
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
        buffers = weakref.ref(run._runs[0]._blenders[0])
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


def test_invalid_requests_are_refused() -> None:
    predictor = RulePredictor(contextual)
    with pytest.raises(InvalidInput, match="at least one model"):
        attend(make_source(), (), predictor, scheme=ABDOMEN_ATLAS)
    with pytest.raises(UnknownLabel, match="pancreas"):
        attend(make_source(), ENSEMBLE, predictor, organs=["pancreas"], scheme=ABDOMEN_ATLAS)
    with pytest.raises(InvalidInput, match="swin, unet, swin"):
        attend(
            make_source(),
            (spec("swin"), spec("unet"), spec("swin")),
            predictor,
            scheme=ABDOMEN_ATLAS,
        )
    with pytest.raises(InvalidInput, match="model odd knows no organ of the scheme"):
        attend(
            make_source(),
            (*ENSEMBLE, spec("odd", organs=("tail",))),
            predictor,
            scheme=ABDOMEN_ATLAS,
        )


def test_a_model_that_says_the_same_everywhere_is_refused_by_name() -> None:
    def stuck(spec: ModelSpec, window: NDArray[np.float32]) -> NDArray[np.uint8]:
        soft = contextual(spec, window)
        return np.full_like(soft, 7) if spec.name == "unet" else soft

    with pytest.raises(ConfigurationError, match=r"model unet@0\S* answered 7 in every voxel"):
        run(make_source(), RulePredictor(stuck))


def test_a_model_that_finds_nothing_is_named() -> None:
    def blind(spec: ModelSpec, window: NDArray[np.float32]) -> NDArray[np.uint8]:
        soft = contextual(spec, window)
        return np.zeros_like(soft) if spec.name == "unet" else soft

    result = run(make_source(), RulePredictor(blind))
    assert result.summary.silent == (ENSEMBLE[2].ref,)


def test_channels_that_the_scheme_lacks_take_no_part(predictor: RulePredictor) -> None:
    """Wherever they stand among a model's own: as if it had never had them."""

    def known(spec: ModelSpec, window: NDArray[np.float32]) -> NDArray[np.uint8]:
        soft = contextual(ENSEMBLE[0], window)
        return np.stack([soft[0], np.full_like(soft[0], 200), soft[1], soft[2]])

    odd = (spec("odd", organs=("liver", "tail", "spleen", "aorta")),)
    assert_same(
        run(make_source(), RulePredictor(known), odd), run(make_source(), predictor, ENSEMBLE[:1])
    )


def test_locating_lays_windows_only_where_organs_can_be_and_changes_nothing_there() -> None:
    shape = (37, 33, 120)
    voxels = np.zeros(shape, np.float32)
    voxels[10:20, 12:22, 50:60] = 200.0
    source = ArraySource(voxels, VolumeGeometry.from_array(shape, np.diag([1.5, 1.4, 3.0, 1.0])))

    def bright(spec: ModelSpec, window: NDArray[np.float32]) -> NDArray[np.uint8]:
        return np.stack([(window > 20 + 40 * c) * np.uint8(200) for c in range(len(spec.organs))])

    predictor = RulePredictor(bright)
    told: list[tuple[int, int]] = []
    expected = run(source, predictor)
    result = run(source, predictor, locator=ENSEMBLE[0], on_progress=lambda *of: told.append(of))
    assert result.label.any()
    assert_same(result, expected)
    assert result.summary.organs == expected.summary.organs
    assert expected.summary.left_out == 0 and 0.4 < result.summary.left_out < 1
    assert result.summary.windows < 0.7 * expected.summary.windows
    assert told[-1] == (told[-1][1],) * 2 == (result.summary.windows,) * 2
    predictor.shutdown()
