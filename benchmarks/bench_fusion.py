"""Fusion (Eq. 1–4) against plain NumPy, and against the machine's copy bandwidth.

Both sides work on the same uint8 soft predictions in one process, and all give attention, mean and
pseudo label. NumPy works in float32 and slice by slice, which keeps its arrays in the caches: the
whole volume at once takes it longer still, and over ten times the memory.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from atlas_attention.fusion import ATTENTION_LEVELS, fuse
from bench.measurement import machine, report, say, timed
from bench.soft_predictions import dense, occupied, realistic
from numpy.typing import NDArray

MODELS, ORGANS = 3, 9
REALISTIC = (200, 512, 512)
DENSE = (25, 512, 512)
RUNS = 7
COPY_BYTES = 1 << 29


def fuse_with_numpy(soft: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Eq. 1–4 as one writes them down: attention bytes ``[organ, z, y, x]``."""
    attention = np.empty(soft.shape[1:], np.uint8)
    mean = np.empty(soft.shape[1:], np.uint8)
    label = np.empty(soft.shape[2:], np.uint8)
    for z in range(soft.shape[2]):
        p = soft[:, :, z].astype(np.float32) / np.float32(255)
        average = p.mean(axis=0)
        inconsistency = p.std(axis=0)
        uncertainty = -(p * np.log(np.where(p > 0, p, 1))).mean(axis=0)
        sure = (p > 0.5).any(axis=0)
        overlap = sure & (sure.sum(axis=0) > 1)
        total = inconsistency + uncertainty + overlap
        attention[:, z] = np.floor(total * ATTENTION_LEVELS + np.float32(0.5))
        mean[:, z] = np.rint(255 * average)
        label[z] = np.where(average.max(axis=0) > 0.5, average.argmax(axis=0) + 1, 0)
    return attention


def copy_bandwidth() -> float:
    """Bytes read plus bytes written per second: the better of one thread and two."""
    source = np.ones(COPY_BYTES, np.uint8)
    target = np.ones_like(source)
    halves = [slice(0, COPY_BYTES // 2), slice(COPY_BYTES // 2, None)]

    def copy_half(part: slice) -> None:
        np.copyto(target[part], source[part])

    alone = timed(lambda: np.copyto(target, source), RUNS).median
    with ThreadPoolExecutor(2) as pool:
        together = timed(lambda: list(pool.map(copy_half, halves)), RUNS).median
    return 2 * COPY_BYTES / min(alone, together)


def compare(name: str, soft: NDArray[np.uint8]) -> dict[str, Any]:
    """Both sides on one input; they must agree to a byte step."""
    say(f"{name}: {list(soft.shape)}, {occupied(soft):.1%} of the bytes are not zero")
    out = fuse(soft)  # its memory is used again, as a service would that fuses case after case
    ours = timed(lambda: fuse(soft, out=out), RUNS)
    fresh = timed(lambda: fuse(soft), RUNS)
    numpy = timed(lambda: fuse_with_numpy(soft), 1, warm_up=0)
    part = soft[:, :, soft.shape[2] // 2 :][:, :, :4]
    apart = np.abs(fuse(part).attention.astype(int) - fuse_with_numpy(part).astype(int)).max()
    assert apart <= 1, apart
    return {
        "shape": list(soft.shape),
        "occupied": round(occupied(soft), 4),
        "ours": ours.rounded(),
        "ours_in_new_memory": fresh.rounded(),
        "numpy": numpy.rounded(),
        "ratio": numpy.median / ours.median,
    }


def main() -> None:
    bandwidth = copy_bandwidth()
    soft = realistic(MODELS, ORGANS, REALISTIC)
    sparse = compare("realistic", soft)
    out = soft[0].nbytes * 2 + soft[0, 0].nbytes  # attention, mean, label
    share = (soft.nbytes + out) / sparse["ours"]["median_s"] / bandwidth
    del soft
    full = compare("dense", dense(MODELS, ORGANS, DENSE))
    report(
        "fusion",
        numpy_ratio_realistic=round(sparse["ratio"], 1),
        numpy_ratio_dense=round(full["ratio"], 1),
        copy_bandwidth_share=round(share, 2),
        copy_gb_per_s=round(bandwidth / 1e9, 1),
        realistic=sparse,
        dense=full,
        machine=machine("numpy", "numba"),
    )


if __name__ == "__main__":
    main()
