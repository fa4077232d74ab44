"""Members of different grids, patches and organs, against whole volumes in NumPy."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from atlas_attention.fusion import AIR_HU, PanelFuser, open_fuser
from atlas_attention.fusion.compute import GpuCompute
from atlas_attention.fusion.fused import Fused
from atlas_attention.scoring import attend, plan_windows
from atlas_attention.scoring.body_box import body_box
from atlas_attention.scoring.group_run import MIRRORINGS, window_plan
from atlas_attention.scoring.members import fusion_plan
from atlas_attention.scoring.model_grid import extract_window
from atlas_attention.scoring.native_grid import AxisPositions, NativeGrid
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging.resampling import resample_across, resample_image, resample_planes
from atlas_core.imaging.spline_weights import nnunet_weights
from atlas_core.model_spec import ModelSpec
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.records import Reading
from host_device import HostDevice
from numpy.typing import NDArray
from rule_models import (
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

SCHEME_ORDER = ("aorta", "liver", "pancreas", "spleen")

MIXED = (
    spec("swin"),
    spec("unet", organs=("spleen", "liver")),
    spec("nnunet", patch=(12, 20, 8), spacing_mm=(1.6, 1.6, 5.0), organs=("liver", "aorta")),
    spec("coarse", patch=(10, 10, 10), spacing_mm=(4.0, 4.0, 4.0), overlap=0.25),
    spec("foreign", patch=(14, 14, 14), spacing_mm=(2.5, 2.5, 2.5),
         organs=("pancreas", "tail", "aorta"), mirrored=True, windows="volume"),
)  # fmt: skip
"""Every kind at once: two of one grid with different organs, and three of grids of their own."""

Rule = Callable[[ModelSpec, NDArray[np.float32]], NDArray[np.uint8]]


def blended(source: ArraySource, one: ModelSpec, rule: Rule, body: object) -> NDArray[np.uint8]:
    """What one member says of a whole CT on its own grid, ``[organ, z, y, x]``."""
    grid = source.canonical.resampled(one.spacing_mm)
    ct = resample_image(source.voxels, source.geometry, grid).transpose(2, 1, 0)
    patch = one.patch[::-1]
    overlap = 0.5 if one.overlap is None else one.overlap
    plan = window_plan(
        source,
        one.spacing_mm,
        patch,
        overlap,
        body,
        one.windows,  # type: ignore[arg-type]
    )
    return blend(plan, ct, (len(one.organs),), lambda voxels: mirrored(one, voxels, rule))


def mirrored(one: ModelSpec, voxels: NDArray[np.float32], rule: Rule) -> NDArray[np.int64]:
    answers = [
        np.flip(
            rule(one, np.ascontiguousarray(np.flip(voxels, flips))).astype(np.int64),
            [1 + axis for axis in flips],
        )
        for flips in (MIRRORINGS if one.mirrored else MIRRORINGS[:1])
    ]
    return np.asarray((2 * sum(answers) + len(answers)) // (2 * len(answers)))


def on_fusion_grid(soft: NDArray[np.uint8], grid: tuple[int, ...]) -> NDArray[np.uint8]:
    """Trilinear at positions rounded to 1/256, in whole numbers."""
    out = soft.astype(np.int64)
    for axis, count in enumerate(grid, start=1):
        at = AxisPositions.between(out.shape[axis], count)
        weight = at.weight.astype(np.int64).reshape(-1, *[1] * (3 - axis))
        out = np.take(out, at.lower, axis) * (256 - weight) + np.take(out, at.upper, axis) * weight
    return ((out + (1 << 23)) >> 24).astype(np.uint8)


def whole_volume(
    source: ArraySource,
    rule: Rule,
    specs: tuple[ModelSpec, ...],
    reading: Reading,
    fusion_spacing_mm: tuple[float, float, float] | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Canonical attention ``[organ, z, y, x]`` and label; nothing in slabs."""
    plan = fusion_plan(specs, ABDOMEN_ATLAS, 0.5)
    body = body_box(source, min(one.hu_window[0] for one in specs))
    grid = plan.fusion_grid(source.canonical, fusion_spacing_mm).shape[::-1]
    soft = [on_fusion_grid(blended(source, one, rule, body), grid) for one in specs]
    fuser = PanelFuser(plan.panels, reading, open_fuser)
    parts = [
        np.stack(
            [
                [soft[m][specs[m].organs.index(plan.organs[c])] for c in panel.organs]
                for m in panel.members
            ]
        )
        for panel in plan.panels
    ]
    fused = Fused.concatenated([fuser.push(parts), fuser.finish()])
    native = NativeGrid(
        grid, source.canonical.shape[::-1], ABDOMEN_ATLAS.select(list(plan.organs)).labels
    )
    slabs = list(native.push(fused))
    return np.concatenate([s.attention for s in slabs], 1), np.concatenate([s.label for s in slabs])


def assert_equals(result: Result, attention: NDArray[np.uint8], label: NDArray[np.uint8]) -> None:
    assert (result.attention == attention.transpose(0, 3, 2, 1)).all()
    assert (result.label == label.transpose(2, 1, 0)).all()
    assert result.label.any() and result.attention.any()


@pytest.fixture(scope="module")
def predictor() -> RulePredictor:
    return RulePredictor(contextual)


@pytest.mark.parametrize("reading", list(Reading))
@pytest.mark.parametrize("fusion_spacing_mm", [None, (3.0, 2.0, 4.0)])
def test_slabs_equal_the_whole_volume(
    predictor: RulePredictor,
    reading: Reading,
    fusion_spacing_mm: tuple[float, float, float] | None,
) -> None:
    source = make_source((37, 33, 29))
    result = run(source, predictor, MIXED, reading=reading, fusion_spacing_mm=fusion_spacing_mm)
    assert_equals(result, *whole_volume(source, contextual, MIXED, reading, fusion_spacing_mm))
    assert [organ.organ for organ in result.summary.organs] == list(SCHEME_ORDER)
    assert [organ.voices for organ in result.summary.organs] == [4, 4, 1, 3]


@pytest.mark.parametrize("reading", list(Reading))
@pytest.mark.parametrize("shape", [(30, 30, 90), (9, 40, 61), (50, 12, 5)])
def test_slab_size_and_order_of_members_change_nothing(
    predictor: RulePredictor, reading: Reading, shape: tuple[int, int, int]
) -> None:
    source = make_source(shape)
    expected = run(source, predictor, MIXED, reading=reading)
    result = run(
        source, predictor, MIXED[::-1], reading=reading,
        slab_slices=3, windows_in_flight=1, threads=1,
    )  # fmt: skip
    assert (result.attention == expected.attention).all()
    assert (result.label == expected.label).all()
    for organ, before in zip(result.summary.organs, expected.summary.organs, strict=True):
        assert organ.model_dump() == pytest.approx(before.model_dump())  # a mean over pairs
    assert max(slab.stop - slab.start for slab in result.slabs) <= 3


def test_kernels_of_the_gpu_change_nothing(
    predictor: RulePredictor, host_device: HostDevice
) -> None:
    source = make_source((29, 30, 33))
    expected = run(source, predictor, MIXED)
    result = run(source, predictor, MIXED, compute=GpuCompute(host_device))
    assert (result.attention == expected.attention).all()
    assert (result.label == expected.label).all()


@pytest.mark.parametrize("axes", ["LPI", "SAR"])
def test_axis_order_and_flips_of_the_file_change_nothing(
    predictor: RulePredictor, axes: str
) -> None:
    turned = make_source(axes=axes)
    expected, result = (run(source, predictor, MIXED) for source in (make_source(), turned))
    back = turned.geometry.axis_map.to_canonical
    assert (back(result.label) == expected.label).all()
    for organ, reference in zip(result.attention, expected.attention, strict=True):
        assert (back(organ) == reference).all()


def test_members_that_know_all_organs_are_one_panel_wherever_they_look() -> None:
    """A rule of the voxel, on the CT's own grid in windows of different sizes: the grid on which a
    member looks is the only thing that could make a difference, and there is none."""
    geometry = VolumeGeometry.from_array((20, 21, 22), np.diag([2.0, 2.0, 3.0, 1.0]))
    source = ArraySource(make_source((20, 21, 22)).voxels, geometry)
    one_grid = (spec("swin"), spec("nnunet"), spec("unet"))
    mixed = (spec("swin"), spec("nnunet", patch=(10, 9, 8)), spec("unet", overlap=0.25))
    expected, result = (run(source, RulePredictor(voxelwise), s) for s in (one_grid, mixed))
    assert (result.attention == expected.attention).all()
    assert (result.label == expected.label).all()
    assert result.summary.organs == expected.summary.organs


def test_the_fusion_grid_is_the_finest_of_the_members_but_none_finer_than_the_ct() -> None:
    ct = make_source().canonical  # 1.5 x 1.4 x 3 mm
    assert fusion_plan(MIXED, ABDOMEN_ATLAS, 0.5).fusion_grid(ct) == ct.resampled((1.6, 1.6, 3.0))
    finer = (spec("swin", spacing_mm=(1.0, 1.0, 1.0)), spec("unet"))
    assert fusion_plan(finer, ABDOMEN_ATLAS, 0.5).fusion_grid(ct) == ct
    alone = fusion_plan(finer[:1], ABDOMEN_ATLAS, 0.5)
    assert alone.fusion_grid(ct) == ct.resampled((1.0, 1.0, 1.0))  # its own, whatever the CT's
    assert alone.fusion_grid(ct, (2.0, 1.0, 4.0)) == ct.resampled((2.0, 1.4, 4.0))


@pytest.mark.parametrize("slices", [2, 16])
def test_nnunet_resampling_is_that_of_the_whole_volume(slices: int) -> None:
    """Whatever the slabs: the windows are cut out of nnU-Net's weights over the whole CT, which
    was clipped before."""
    member = spec("nnunet", spacing_mm=(2.0, 2.0, 4.0), resampling="nnunet")
    source = make_source()
    seen: list[NDArray[np.float32]] = []

    def rule(one: ModelSpec, window: NDArray[np.float32]) -> NDArray[np.uint8]:
        seen.append(window)
        return contextual(one, window)

    run(source, RulePredictor(rule, threads=1), (member,), slab_slices=slices)
    grid = source.canonical.resampled(member.spacing_mm).shape[::-1]
    native = source.canonical.shape[::-1]
    z, y, x = nnunet_weights((3.0, 1.4, 1.5), (4.0, 2.0, 2.0), native, grid)
    low, high = member.hu_window
    ct = np.ascontiguousarray(np.clip(source.voxels.transpose(2, 1, 0), low, high) - low)
    whole = resample_across(resample_planes(ct.astype(np.float32), y, x), z, 0, z.new, 0)
    whole = np.clip(whole + np.float32(low), low, high)
    plan = plan_windows(source, (member,), 0.5)
    cut = [extract_window(whole[slice(*plan.z_range(w.at[0]))], w, plan)
           for k in range(plan.rows) for w in plan.row(k)]  # fmt: skip
    assert len(seen) == len(cut)
    assert all((given == wanted).all() for given, wanted in zip(seen, cut, strict=True))


def test_nnunets_thick_slices_are_copied_on_the_way_back_and_its_padding_is_its_own() -> None:
    """As nnU-Net brings its predictions to the CT: linearly in the plane, slices as they are; and
    as it fills a window that the CT does not: with the mean of its intensities."""
    thick = spec("nnunet", (12, 12, 4), spacing_mm=(2.0, 2.0, 9.0), resampling="nnunet")
    source = make_source()
    plan = fusion_plan((thick,), ABDOMEN_ATLAS, 0.5)
    grid = plan.fusion_grid(source.canonical)
    assert grid == source.canonical.resampled((2.0, 2.0, 3.0))  # its own, but the CT's slices
    slices = source.canonical.resampled(thick.spacing_mm).shape[2]
    copied = AxisPositions.nearest(slices, grid.shape[2])
    result = run(source, RulePredictor(contextual), (thick,))
    labels = source.geometry.axis_map.to_canonical(result.label)
    for k in range(1, grid.shape[2]):
        if copied.lower[k] == copied.lower[k - 1]:
            assert (labels[:, :, k] == labels[:, :, k - 1]).all()
    assert len(np.unique(copied.lower)) > 1 and labels.any()

    seen: list[NDArray[np.float32]] = []

    def rule(one: ModelSpec, window: NDArray[np.float32]) -> NDArray[np.uint8]:
        seen.append(window)
        return contextual(one, window)

    large = spec("nnunet", (64, 64, 64), padding_hu=61.5)
    run(source, RulePredictor(rule, threads=1), (large,))
    (window,) = seen
    assert window[0, 0, 0] == window[-1, -1, -1] == 61.5
    within = np.prod(source.canonical.resampled(large.spacing_mm).shape)
    assert (window == 61.5).sum() >= window.size - within

    seen.clear()
    going_on = spec("unet", (64, 64, 64), padding_hu="edge")
    run(source, RulePredictor(rule, threads=1), (going_on, spec("air", (64, 64, 64))))
    edge, air = seen
    there = np.nonzero(air != AIR_HU)
    box = tuple(slice(at.min(), at.max() + 1) for at in there)
    beyond = [(part.start, 64 - part.stop) for part in box]
    assert max(before + after for before, after in beyond) > 20
    assert np.array_equal(edge, np.pad(air[box], beyond, mode="edge"))


def test_mirrored_members_predict_every_window_eight_times() -> None:
    predictor, mirroring = RulePredictor(voxelwise), RulePredictor(voxelwise)
    plain = run(make_source(), predictor, (spec("unet"),))
    result = run(make_source(), mirroring, (spec("unet", mirrored=True),))
    assert mirroring.calls == 8 * predictor.calls
    assert result.summary.windows == 8 * plain.summary.windows
    assert (result.attention == plain.attention).all()  # a rule of the voxel is the same mirrored


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_slices() -> None:
    held = {}
    for slices in (20, 40, 120):  # the first once more than is asked: imports count as memory too
        source = make_source((48, 48, slices))
        attending = attend(  # one window at a time: how many are under way is chance otherwise
            source, MIXED, RulePredictor(contextual), windows_in_flight=1, scheme=ABDOMEN_ATLAS
        )
        tracemalloc.start()
        for _ in attending:
            pass
        held[slices] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert source.most_slices <= 16
    assert held[120] < 1.15 * held[40]
