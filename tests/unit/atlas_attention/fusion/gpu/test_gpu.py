"""The GPU's kernels give what the CPU's give, to the bit.

Without a GPU they are compiled as C++ (`host_device`); with one, every law is checked there too.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from atlas_attention.fusion import (
    MAX_MODELS,
    CpuCompute,
    Fused,
    Window,
    WindowPlan,
    fuse,
    no_counts,
    open_compute,
    open_fuser,
)
from atlas_attention.fusion.blending import Blender
from atlas_attention.fusion.gpu.blending import GpuBlender
from atlas_attention.fusion.gpu.device import CONSTANTS, KERNELS, CudaDevice, Device
from atlas_attention.fusion.gpu.fusion import counts_of, fuse_block, open_gpu_fuser, opened_gates
from atlas_attention.fusion.released import mark_candidates, open_gates
from atlas_attention.server import AttentionServer
from atlas_attention.settings import AttentionSettings
from atlas_core.errors import ConfigurationError, InvalidInput
from atlas_core.records import Reading
from numpy.typing import NDArray

ODD, EVEN = (3, 17, 29), (4, 12, 23)
"""Grids whose number of voxels is and is not a multiple of four: bytes, and whole words."""


def noise(models: int, organs: int, grid: tuple[int, int, int], seed: int = 0) -> NDArray[np.uint8]:
    """Random bytes with runs of zeros, ones, and values around a half."""
    rng = np.random.default_rng(seed)
    soft = rng.integers(0, 256, (models, organs, *grid), dtype=np.uint8)
    near_half = rng.random(soft.shape) < 0.2
    soft[near_half] = rng.integers(126, 130, int(near_half.sum()))
    soft[rng.random(soft.shape) < 0.2] = 0
    soft[rng.random(soft.shape) < 0.1] = 255
    soft[:, :, 0, : grid[1] // 2] = 0
    return soft


def blobs(models: int, organs: int, grid: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Overlapping balls on which the models disagree in thick rims: openings leave some of them,
    also at the faces of the volume."""
    z, y, x = np.meshgrid(*(np.arange(n) for n in grid), indexing="ij")
    rng = np.random.default_rng(3)
    soft = np.zeros((models, organs, *grid), np.uint8)
    for n, c in np.ndindex(models, organs):
        centre = rng.uniform(0.2, 0.8, 3) * grid + 2 * n
        distance = np.sqrt((z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2)
        soft[n, c] = np.clip(255 * (1.4 - distance / 9), 0, 255)
    soft[rng.random(soft.shape) < 0.01] = 255
    return soft


def assert_equal(device: Device, ours: Fused, expected: Fused) -> None:
    assert (device.to_host(ours.attention) == expected.attention).all()
    assert (device.to_host(ours.mean) == expected.mean).all()
    assert (device.to_host(ours.label) == expected.label).all()


@pytest.mark.parametrize("grid", [ODD, EVEN])
@pytest.mark.parametrize(
    "models, organs", [(1, 1), (1, 9), (2, 3), (3, 9), (5, 4), (16, 2), (3, 64), (2, 255)]
)
def test_fusion(device: Device, models: int, organs: int, grid: tuple[int, int, int]) -> None:
    soft = noise(models, organs, grid)
    assert_equal(device, fuse_block(device, device.arrays.asarray(soft)), fuse(soft))


def test_fusion_of_every_sum(device: Device) -> None:
    """Every Σv that up to 16 models can reach: mean and label are never off."""
    for models in range(1, MAX_MODELS + 1):
        total = np.arange(255 * models + 1)
        soft = np.stack([total // models + (n < total % models) for n in range(models)])
        soft = soft.astype(np.uint8).reshape(models, 1, 1, 1, -1)
        assert_equal(device, fuse_block(device, device.arrays.asarray(soft)), fuse(soft))


def test_fusion_of_every_pair_of_bytes(device: Device) -> None:
    """Every deviation and entropy that two models can have."""
    soft = np.stack(np.meshgrid(np.arange(256), np.arange(256))).astype(np.uint8)
    soft = soft.reshape(2, 1, 1, 256, 256)
    assert_equal(device, fuse_block(device, device.arrays.asarray(soft)), fuse(soft))


def test_fusion_of_memory_that_is_not_aligned(device: Device) -> None:
    """A multiple of four voxels that begins at an odd byte is not read by words."""
    soft = noise(1, 1, (5, 1, 7))[:, :, 1:]
    assert soft.size % 4 == 0 and soft.flags.c_contiguous
    on_device = device.arrays.asarray(noise(1, 1, (5, 1, 7)))[:, :, 1:]
    assert_equal(device, fuse_block(device, on_device), fuse(soft))


@pytest.mark.parametrize("grid", [(3, 30, 31), (13, 30, 31), (24, 32, 20)])
def test_gates_are_marked_and_opened(device: Device, grid: tuple[int, int, int]) -> None:
    soft = blobs(3, 4, grid)
    expected = mark_candidates(soft)
    open_gates(expected, 1)
    opened = device.to_host(opened_gates(device, device.arrays.asarray(soft)))
    assert (opened == expected).all()
    assert expected.any() or grid[0] < 5


@pytest.mark.parametrize("reading", [Reading.PAPER, Reading.RELEASED])
@pytest.mark.parametrize("step", [1, 3, 4, 7, 1000])
def test_streams_of_slabs(device: Device, reading: Reading, step: int) -> None:
    soft = blobs(3, 4, (23, 28, 30))
    fuser = open_gpu_fuser(device, reading)
    parts = [
        fuser.push(device.arrays.asarray(soft[:, :, at : at + step])) for at in range(0, 23, step)
    ]
    fused = Fused.concatenated([*parts, fuser.finish()])
    counts = no_counts(3, 4)
    expected = fuse(soft, reading, counts=counts)
    np.testing.assert_array_equal(fuser.counts, counts)
    assert isinstance(fused.attention, np.ndarray)
    assert (fused.attention == expected.attention).all() and expected.attention.any()
    assert (fused.mean == expected.mean).all()
    assert (fused.label == expected.label).all() and expected.label.any()


@pytest.mark.parametrize("models", [1, 2, 5])
def test_counts(device: Device, models: int) -> None:
    soft = noise(models, 3, (5, 6, 7))
    counts = no_counts(models, 3)
    fuse(soft, counts=counts)
    np.testing.assert_array_equal(counts_of(device, device.arrays.asarray(soft)), counts)


@pytest.mark.parametrize("reading", [Reading.PAPER, Reading.RELEASED])
def test_streams_refuse_what_the_cpu_refuses(device: Device, reading: Reading) -> None:
    assert open_gpu_fuser(device, reading).finish().slices == 0
    fuser = open_gpu_fuser(device, reading)
    with pytest.raises(InvalidInput, match="wrong form"):
        fuser.push(device.arrays.zeros((3, 2, 9, 8, 8), np.int16))
    for where in (fuser, open_fuser(reading)):
        arrays: Any = device.arrays if where is fuser else np
        where.push(arrays.zeros((3, 2, 9, 8, 8), np.uint8))
        with pytest.raises(InvalidInput, match="differs from the first"):
            where.push(arrays.zeros((3, 2, 9, 7, 8), np.uint8))


def blended(
    blender: Blender | GpuBlender, plan: WindowPlan, answers: dict[Window, NDArray[np.uint8]]
) -> list[Any]:
    """What `blender` reads out, a few slices at a time."""
    parts = []
    for k in range(plan.rows):
        blender.open_row(k)
        for window in plan.row(k):
            for model, soft in enumerate(answers.get(window, ())):
                blender.add(window, model, soft)
        start = 0 if k == 0 else plan.settled(k - 1)
        parts += [
            blender.read(min(plan.settled(k), at + 5)) for at in range(start, plan.settled(k), 5)
        ]
    return parts


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("grid", [(29, 22, 26), (5, 7, 30), (40, 9, 8)])
def test_blending(device: Device, grid: tuple[int, int, int], overlap: float) -> None:
    """Windows in and over the edge of the grid, some of them air."""
    plan = WindowPlan.over(grid, (12, 10, 8), overlap)
    windows = [window for k in range(plan.rows) for window in plan.row(k)]
    answers = {w: noise(2, 3, plan.patch, seed) for seed, w in enumerate(windows) if seed % 5 != 3}
    ours = blended(GpuBlender(device, plan, 2, 3), plan, answers)
    expected = blended(Blender(plan, 2, 3, threads=1), plan, answers)
    for part, reference in zip(ours, expected, strict=True):
        assert (device.to_host(part) == reference).all()


def test_blending_takes_answers_of_the_device_and_refuses_others(device: Device) -> None:
    plan = WindowPlan.over((12, 10, 8), (12, 10, 8), 0.5)
    window = next(plan.row(0))
    blender = GpuBlender(device, plan, 1, 2)
    blender.open_row(0)
    with pytest.raises(InvalidInput, match="another form"):
        blender.add(window, 0, device.arrays.zeros((3, 12, 10, 8), np.uint8))
    soft = noise(1, 2, plan.patch)
    blender.add(window, 0, device.arrays.asarray(soft[0]))
    assert (device.to_host(blender.read(12)) == soft).all()


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_the_kernels_compile_for_gpus(tmp_path: Path, architecture: str) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc on this machine")
    subprocess.run(
        [nvcc, "-cubin", f"-arch={architecture}", "-Werror", "all-warnings", *CONSTANTS,
         "-o", tmp_path / "kernels.cubin", str(KERNELS)],
        check=True,
    )  # fmt: skip
    assert (tmp_path / "kernels.cubin").stat().st_size


def test_the_cpu_is_the_default() -> None:
    assert open_compute("cpu") == CpuCompute()


def test_without_cupy_the_error_names_the_extra() -> None:
    if importlib.util.find_spec("cupy") is not None:
        pytest.skip("CuPy is installed here")
    with pytest.raises(ConfigurationError, match=r"CuPy.*atlasloop\[attention,gpu\]"):
        open_compute("cuda")


def test_the_service_does_not_start_without_the_configured_gpu(tmp_path: Path) -> None:
    try:
        CudaDevice()
        pytest.skip("a GPU can be used here")
    except ConfigurationError as error:
        reason = str(error)
    settings = AttentionSettings(
        device="cuda", store=tmp_path, listen="127.0.0.1:18500", metrics_listen=""
    )
    with pytest.raises(ConfigurationError) as refused:
        AttentionServer(settings)
    assert str(refused.value) == reason
