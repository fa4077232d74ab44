"""CTs in memory, models that are rules, and whole runs of the pipeline, for tests of scoring."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from atlas_attention.fusion import AIR_HU, WindowPlan
from atlas_attention.scoring import GridSlab, Predictor, attend
from atlas_attention.scoring.pipeline import AttentionSummary
from atlas_core.geometry import VolumeGeometry
from atlas_core.model_spec import ModelSpec
from atlas_core.organs import ABDOMEN_ATLAS
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
    chosen: dict[str, object] = {"scheme": ABDOMEN_ATLAS} | options
    attending = attend(source, specs, predictor, **chosen)  # type: ignore[arg-type]
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


def blend(
    plan: WindowPlan,
    ct: NDArray[np.float32],
    channels: tuple[int, ...],
    answer: Callable[[NDArray[np.float32]], NDArray[np.integer]],
) -> NDArray[np.uint8]:
    """Windows blended in NumPy over a whole volume, ``[*channels, z, y, x]``.

    Args:
        ct: HU ``[z, y, x]`` on the grid of the plan.
        channels: of an answer, before its z, y, x.
        answer: to the voxels of one window that is not all air.
    """
    hang = [max(0, -starts[0]) for starts in plan.starts]
    pad = [(h, max(0, p - n - h)) for h, p, n in zip(hang, plan.patch, ct.shape, strict=True)]
    padded = np.pad(ct, pad, constant_values=AIR_HU)
    sums = np.zeros((*channels, *padded.shape), np.int64)
    weights = np.zeros(padded.shape, np.int64)
    for k in range(plan.rows):
        for window in plan.row(k):
            place = tuple(
                slice(s + h, s + h + p)
                for s, h, p in zip(window.start, hang, plan.patch, strict=True)
            )
            z, y, x = (share[at] for share, at in zip(plan.shares, window.at, strict=True))
            zy = z[:, None, None] * y[:, None] * 257
            weight = np.minimum(np.floor(zy * x), 255).astype(np.int64)
            weights[place] += weight
            if padded[place].max() > -175:
                sums[..., *place] += weight * answer(np.ascontiguousarray(padded[place]))
    inside = tuple(slice(h, h + n) for h, n in zip(hang, ct.shape, strict=True))
    soft = (2 * sums + weights) // np.maximum(2 * weights, 1)
    return np.ascontiguousarray(soft[..., *inside]).astype(np.uint8)
