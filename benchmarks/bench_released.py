"""Reading `released` on a full-size case: time, memory, and equality with SciPy voxel for voxel.

The published script took 434 s and 9.5 GB for a case of this size on two cores, reading and writing
files included. Here both sides start from uint8 soft predictions in memory.
"""

from __future__ import annotations

import os
import time

import numpy as np
from atlas_attention.fusion import FRACTION_BITS, UNIT, entropy_terms, fuse
from atlas_core.records import Reading
from bench.measurement import GIB, forget_peak, machine, peak_bytes, report, say, timed
from bench.soft_predictions import occupied, realistic
from numpy.typing import NDArray
from scipy import ndimage

MODELS, ORGANS = 3, 8
SHAPE = (200, 512, 512)
RUNS = 3


def opened(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    full = np.ones((3, 3, 3), bool)
    eroded = ndimage.binary_erosion(mask, full, iterations=2)
    return np.asarray(ndimage.binary_dilation(eroded, full, iterations=2))


def organ_with_scipy(
    soft: NDArray[np.uint8], claims: NDArray[np.uint8], organ: int
) -> NDArray[np.uint8]:
    """The definition for one organ, its sums in the fixed point that the bytes stand for.

    Args:
        claims: organs whose mean is above one half, per voxel.
    """
    models = len(soft)
    one = soft[:, organ]
    total = one.sum(axis=0, dtype=np.int64)
    spread = models * np.square(one, dtype=np.int64).sum(axis=0) - total**2
    std = np.sqrt(spread) / (255 * models)
    entropy = entropy_terms(models, 1 << 40)[one].sum(axis=0) / (1 << 40)
    terms = entropy_terms(models, UNIT)[one].sum(axis=0)
    fixed = np.where(opened(std > 0.1), np.floor(std * UNIT + 1e-3).astype(np.int64), 0)
    fixed += np.where(opened(entropy > 0.05), terms, 0)
    fixed += np.where((2 * total > 255 * models) & (claims > 1), UNIT, 0)
    return ((fixed + (1 << (FRACTION_BITS - 1))) >> FRACTION_BITS).astype(np.uint8)


def main() -> None:
    soft = realistic(MODELS, ORGANS, SHAPE)
    fuse(soft[:, :, :8], Reading.RELEASED)  # compiled before memory is looked at
    forget_peak([os.getpid()])
    before = peak_bytes()
    ours = timed(lambda: fuse(soft, Reading.RELEASED), RUNS, warm_up=0)
    beyond = peak_bytes() - before
    fused = fuse(soft, Reading.RELEASED)
    claims = np.zeros(SHAPE, np.uint8)
    for organ in range(ORGANS):
        claims += 2 * soft[:, organ].sum(axis=0, dtype=np.int64) > 255 * MODELS
    say(f"ours took {ours.median:.2f} s; now SciPy, organ by organ")
    different = 0
    scipy_s = 0.0
    for organ in range(ORGANS):
        began = time.perf_counter()
        expected = organ_with_scipy(soft, claims, organ)
        scipy_s += time.perf_counter() - began
        different += int(np.count_nonzero(expected != fused.attention[organ]))
    report(
        "released",
        seconds=round(ours.median, 2),
        peak_gib=round(beyond / GIB, 3),
        different_voxels=int(different),
        attended_voxels=int(np.count_nonzero(fused.attention)),
        scipy_seconds=round(scipy_s, 1),
        shape=list(soft.shape),
        occupied=round(occupied(soft), 4),
        soft_predictions_gib=round(soft.nbytes / GIB, 3),
        runs=ours.rounded(),
        machine=machine("numpy", "numba", "scipy"),
    )


if __name__ == "__main__":
    main()
