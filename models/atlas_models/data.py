"""Training cases on the model's grid, and random patches of them. Free of torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from atlas_core.geometry import Float3, Shape3, VolumeGeometry
from atlas_core.organs import ABDOMEN_ATLAS, OrganScheme
from atlas_core.phantoms import Phantom
from atlas_core.resampling import resample_image
from numpy.typing import NDArray

from atlas_models.config import TrainingConfig

AIR_HU = -1024.0
"""Beyond the volume is air, for training as for serving."""


@dataclass(frozen=True)
class TrainingCase:
    """One case on the model's grid.

    Attributes:
        ct: Hounsfield units, float32 ``[z, y, x]``.
        target: share of each voxel that each organ fills, 255 = all, uint8 ``[organ, z, y, x]``.
        labelled: which organs the case has labels for, bool ``[organ]``.
    """

    ct: NDArray[np.float32]
    target: NDArray[np.uint8]
    labelled: NDArray[np.bool_]


def prepare_case(
    ct: NDArray[np.int16] | NDArray[np.float32],
    label_map: NDArray[np.uint8],
    geometry: VolumeGeometry,
    spacing_mm: Float3,
    organs: Sequence[str],
    *,
    labelled: Iterable[str] | None = None,
    scheme: OrganScheme = ABDOMEN_ATLAS,
) -> TrainingCase:
    """A case on the model's grid, resampled as serving does it.

    Masks are resampled like images: the share of a voxel that an organ fills teaches the network
    borders finer than its grid, which interpolation brings back on the CT's own grid.

    Args:
        ct, label_map: ``[i, j, k]`` in the file's axis order, on `geometry`.
        organs: channels of the target, in order.
        labelled: organs whose label the case has; by default all.
    """
    canonical = geometry.canonical()
    grid = canonical.resampled(spacing_mm)
    known = set(organs if labelled is None else labelled)
    target = np.zeros((len(organs), *grid.shape[::-1]), dtype=np.uint8)
    for channel, organ in enumerate(organs):
        if organ in known:
            mask = label_map == scheme[organ].label
            if mask.any():
                share = resample_image(mask.astype(np.float32), geometry, grid)
                target[channel] = np.rint(share * 255.0).transpose(2, 1, 0)
    hu = np.ascontiguousarray(resample_image(ct, geometry, grid).transpose(2, 1, 0))
    return TrainingCase(hu, target, np.array([organ in known for organ in organs]))


def phantom_case(phantom: Phantom, config: TrainingConfig) -> TrainingCase:
    """A fully labelled training case out of a phantom."""
    return prepare_case(
        phantom.ct, phantom.truth, phantom.geometry, config.spacing_mm, config.organs
    )


def positive_weights(cases: Sequence[TrainingCase], cap: float) -> NDArray[np.float32]:
    """How much more an organ's voxels count than the background's, ``[organ]``.

    The square root of their rarity, at most `cap`: it balances the liver against the gall bladder
    without drowning the latter in false alarms.
    """
    shares = []
    for channel in range(cases[0].target.shape[0]):
        filled = [case.target[channel].mean() / 255.0 for case in cases if case.labelled[channel]]
        shares.append(max(float(np.mean(filled)) if filled else 1.0, 1e-6))
    return np.clip(1.0 / np.sqrt(np.array(shares)), 1.0, cap).astype(np.float32)


class PatchSampler:
    """Random augmented patches of training cases; everything follows from the seed.

    Args:
        patch: window along x, y, z.
    """

    def __init__(self, cases: Sequence[TrainingCase], patch: Shape3, seed: int) -> None:
        self._cases = tuple(cases)
        self._patch = (patch[2], patch[1], patch[0])
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._order: list[int] = []

    def draw(
        self, batch_size: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """A batch: HU ``[batch, 1, z, y, x]``, target 0..1 ``[batch, organ, z, y, x]`` and labelled
        organs ``[batch, organ]``, all float32."""
        drawn = [self._patch_of(self._next_case()) for _ in range(batch_size)]
        hu, target, labelled = (np.stack(part) for part in zip(*drawn, strict=True))
        return hu[:, None], target, labelled

    def _next_case(self) -> TrainingCase:
        """Every case once, in random order, before any comes again."""
        if not self._order:
            self._order = self._rng.permutation(len(self._cases)).tolist()
        return self._cases[self._order.pop()]

    def _patch_of(
        self, case: TrainingCase
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        patch = self._patch
        hu = np.full(patch, AIR_HU, dtype=np.float32)
        target = np.zeros((case.target.shape[0], *patch), dtype=np.float32)
        source, place = [], []
        for length, window in zip(case.ct.shape, patch, strict=True):
            start = self._start(length, window)
            low, high = max(0, start), min(length, start + window)
            source.append(slice(low, high))
            place.append(slice(low - start, high - start))
        hu[tuple(place)] = case.ct[tuple(source)]
        target[(slice(None), *place)] = case.target[(slice(None), *source)] / np.float32(255.0)
        return self._augment(hu), target, case.labelled.astype(np.float32)

    def _start(self, length: int, window: int) -> int:
        """First voxel of a patch along one axis. A short volume floats in air; a long one is cut
        anywhere, its ends as often as a sliding window sees them."""
        spare = length - window
        if spare <= 0:
            return int(self._rng.integers(spare, 1))
        return int(np.clip(self._rng.integers(-4, spare + 5), 0, spare))

    def _augment(self, hu: NDArray[np.float32]) -> NDArray[np.float32]:
        """Other scanners and contrast: gain about the mean of soft tissue, offset, noise."""
        rng = self._rng
        gain, offset = rng.uniform(0.85, 1.15), rng.uniform(-15.0, 15.0)
        noise = rng.uniform(0.0, 14.0)
        grain = rng.standard_normal(hu.shape, dtype=np.float32) * np.float32(noise)
        pivot = np.float32(40.0)
        return np.asarray(
            (hu - pivot) * np.float32(gain) + pivot + np.float32(offset) + grain, dtype=np.float32
        )
