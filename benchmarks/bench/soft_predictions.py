"""Soft predictions as an ensemble makes them: organs of a phantom, seen a little differently by
each model, at the size of a full CT."""

from __future__ import annotations

import numpy as np
from atlas_core.imaging.resampling import axis_weights, resample_across, resample_planes
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.phantoms import PhantomGrid, make_phantom
from numpy.typing import NDArray
from scipy import ndimage

SEED = 1
STEEPNESS = 18.0
"""Of the logit over a mask blurred to 0..1: certain organs and air, a soft rim of about 5 mm."""

DISAGREEMENT = 1.5
"""Standard deviation of the smooth field that each model adds to its logit around an organ."""

AROUND = 0.002
"""Where the blurred mask is above it (about 7 mm from the organ) models say anything at all."""


def realistic(models: int, organs: int, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Soft predictions of the phantom's first `organs` organs, uint8 ``[model, organ, z, y, x]``.

    Made on a grid of about 2.2 mm and brought to `shape` (z, y, x) by linear interpolation, which
    is what a CT's own grid gets from a model that works on a coarser one.
    """
    rng = np.random.default_rng(SEED)
    truth = make_phantom(SEED, grid=PhantomGrid(columns=160, slice_mm=2.9, axis_codes="RAS")).truth
    truth = np.ascontiguousarray(truth.transpose(2, 1, 0))
    z, y, x = (axis_weights(old, new) for old, new in zip(truth.shape, shape, strict=True))
    soft = np.empty((models, organs, *shape), np.uint8)
    for channel, label in enumerate(ABDOMEN_ATLAS.labels[:organs]):
        blurred = ndimage.gaussian_filter((truth == label).astype(np.float32), 1.2)
        for model in range(models):
            noise = ndimage.gaussian_filter(rng.normal(size=truth.shape).astype(np.float32), 3)
            logit = STEEPNESS * (blurred - 0.5) + DISAGREEMENT * noise / noise.std()
            p = np.where(blurred > AROUND, 1 / (1 + np.exp(-logit)), np.float32(0))
            fine = resample_across(resample_planes(p, y, x), z, 0, z.new, 0)
            np.rint(255 * fine, out=fine)
            soft[model, channel] = fine
    return soft


def dense(models: int, organs: int, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Random bytes: nothing can be skipped, and every voxel is as uncertain as can be."""
    rng = np.random.default_rng(SEED)
    return rng.integers(0, 256, (models, organs, *shape), dtype=np.uint8)


def occupied(soft: NDArray[np.uint8]) -> float:
    """Share of the bytes that are not zero."""
    return float(np.count_nonzero(soft) / soft.size)
