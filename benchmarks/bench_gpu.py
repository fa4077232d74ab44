"""Fusion (Eq. 1–4) on a GPU against the card's memory bandwidth and against torch eager.

Soft predictions lie in the card's memory on both sides, and both give attention, mean and pseudo
label there; what goes between card and host is not counted. Torch works in float32 and slab by
slab, because the whole volume at once takes many times the memory.

Needs a GPU and the extra `gpu`; torch must be a build with CUDA, or its side is left out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from atlas_attention.fusion import ATTENTION_LEVELS, Fused, fuse
from atlas_attention.fusion.gpu.device import CudaDevice
from atlas_attention.fusion.gpu.fusion import fuse_block
from atlas_core.errors import ConfigurationError
from bench.measurement import Timing, machine, report, say, timed
from bench.soft_predictions import dense, occupied, realistic
from numpy.typing import NDArray

MODELS, ORGANS = 3, 9
REALISTIC = (200, 512, 512)
DENSE = (100, 512, 512)
TORCH_SLICES = 20
RUNS = 20
COPY_BYTES = 1 << 30


def fuse_with_torch(soft: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Eq. 1–4 as one writes them down: attention, mean ``[organ, z, y, x]``, and label."""
    attention = torch.empty(soft.shape[1:], dtype=torch.uint8, device=soft.device)
    mean = torch.empty_like(attention)
    label = torch.empty(soft.shape[2:], dtype=torch.uint8, device=soft.device)
    for at in range(0, soft.shape[2], TORCH_SLICES):
        here = slice(at, at + TORCH_SLICES)
        p = soft[:, :, here].float() / 255
        average = p.mean(0)
        uncertainty = -torch.xlogy(p, p).mean(0)
        sure = (p > 0.5).any(0)
        overlap = sure & (sure.sum(0) > 1)
        total = p.std(0, correction=0) + uncertainty + overlap
        attention[:, here] = (total * ATTENTION_LEVELS + 0.5).to(torch.uint8)
        mean[:, here] = (255 * average).round().to(torch.uint8)
        top, channel = average.max(0)
        label[here] = torch.where(top > 0.5, channel + 1, 0).to(torch.uint8)
    return attention, mean, label


def finished(device: CudaDevice, work: Callable[[], object]) -> Timing:
    """Seconds until the card is done with `work`."""

    def whole() -> None:
        work()
        device.arrays.cuda.runtime.deviceSynchronize()

    return timed(whole, RUNS, warm_up=3)


def copy_bandwidth(device: CudaDevice) -> float:
    """Bytes read plus bytes written per second by a copy inside the card."""
    source = device.arrays.ones(COPY_BYTES, np.uint8)
    target = device.arrays.empty_like(source)
    seconds = finished(device, lambda: device.arrays.copyto(target, source)).median
    return 2 * COPY_BYTES / seconds


def require_equal(device: CudaDevice, ours: Fused, soft: NDArray[np.uint8]) -> None:
    """The CPU's result, to the bit."""
    expected = fuse(soft)
    assert (device.to_host(ours.attention) == expected.attention).all()
    assert (device.to_host(ours.mean) == expected.mean).all()
    assert (device.to_host(ours.label) == expected.label).all()


def compare(
    name: str, device: CudaDevice, soft: NDArray[np.uint8], bandwidth: float
) -> dict[str, Any]:
    """Both sides on one input."""
    say(f"{name}: {list(soft.shape)}, {occupied(soft):.1%} of the bytes are not zero")
    on_card = device.arrays.asarray(soft)
    require_equal(device, fuse_block(device, on_card), soft)
    ours = finished(device, lambda: fuse_block(device, on_card))
    moved = soft.nbytes + soft[0].nbytes * 2 + soft[0, 0].nbytes
    result = {
        "shape": list(soft.shape),
        "occupied": round(occupied(soft), 4),
        "bandwidth_share": round(moved / ours.median / bandwidth, 3),
        "ours": ours.rounded(),
    }
    if torch.cuda.is_available():
        tensor = torch.utils.dlpack.from_dlpack(on_card)
        theirs = finished(device, lambda: fuse_with_torch(tensor))
        result |= {"torch": theirs.rounded(), "ratio": round(theirs.median / ours.median, 1)}
    return result


def main() -> None:
    try:
        device = CudaDevice()
    except ConfigurationError as error:
        sys.exit(f"bench_gpu measures a GPU: {error}")
    bandwidth = copy_bandwidth(device)
    sparse = compare("realistic", device, realistic(MODELS, ORGANS, REALISTIC), bandwidth)
    full = compare("dense", device, dense(MODELS, ORGANS, DENSE), bandwidth)
    report(
        "gpu",
        bandwidth_share_realistic=sparse["bandwidth_share"],
        bandwidth_share_dense=full["bandwidth_share"],
        torch_ratio_realistic=sparse.get("ratio"),
        torch_ratio_dense=full.get("ratio"),
        copy_gb_per_s=round(bandwidth / 1e9, 1),
        realistic=sparse,
        dense=full,
        gpu=device.name,
        cupy=device.arrays.__version__,
        machine=machine("numpy", "torch"),
    )


if __name__ == "__main__":
    main()
