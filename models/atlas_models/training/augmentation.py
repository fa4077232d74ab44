"""Augmentation of patches by MONAI's transforms: rotation, scale, blur, contrast."""

from __future__ import annotations

from functools import partial

import numpy as np
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandShiftIntensityd,
)
from numpy.typing import NDArray

from atlas_models.config import TrainingConfig
from atlas_models.training.patches import AIR_HU, Augment, intensity_augmented

_HU, _TARGET = "hu", "target"

TURN_RAD = float(np.deg2rad(15.0))
"""Largest rotation of a patient. No mirroring: left and right kidney are different organs."""


def augmentation(config: TrainingConfig) -> Augment:
    """What changes every patch of a training run."""
    if config.augmentation == "intensity":
        return intensity_augmented
    return partial(_transformed, config)


def _full(config: TrainingConfig) -> Compose:
    x, y, z = config.patch
    return Compose(
        [
            RandAffined(
                keys=(_HU, _TARGET),
                prob=0.3,
                spatial_size=(z, y, x),
                rotate_range=(TURN_RAD,) * 3,
                scale_range=(0.15,) * 3,
                # Targets are shares of voxels, so both are interpolated alike.
                mode=("bilinear", "bilinear"),
                padding_mode="zeros",  # of HU above air, see `_transformed`
            ),
            RandGaussianSmoothd(
                keys=_HU, prob=0.2, sigma_x=(0.5, 1.0), sigma_y=(0.5, 1.0), sigma_z=(0.5, 1.0)
            ),
            RandGaussianNoised(keys=_HU, prob=0.3, std=15.0),
            RandScaleIntensityd(keys=_HU, prob=0.3, factors=0.1),
            RandShiftIntensityd(keys=_HU, prob=0.3, offsets=15.0),
            RandAdjustContrastd(keys=_HU, prob=0.2, gamma=(0.8, 1.25)),
        ]
    )


def _transformed(
    config: TrainingConfig,
    hu: NDArray[np.float32],
    target: NDArray[np.float32],
    rng: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    # Anew for every patch: transforms hold the state of their random numbers, and patches are made
    # by several threads.
    transforms = _full(config)
    transforms.set_random_state(seed=int(rng.integers(2**31)))
    # Shifted so that what the turned patch lacks is filled with air, which is 0 then.
    changed = transforms({_HU: hu[None] - np.float32(AIR_HU), _TARGET: target})
    moved = np.asarray(changed[_HU], dtype=np.float32)[0] + np.float32(AIR_HU)
    return moved, np.clip(np.asarray(changed[_TARGET], dtype=np.float32), 0.0, 1.0)
