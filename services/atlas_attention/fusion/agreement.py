"""How much the models of an ensemble disagree about an organ, from counts of a whole volume.

With masks h_n = (p_n > 0.5), the disagreement about an organ is

    1 − mean over pairs n < m of 2·|h_n ∧ h_m| / (|h_n| + |h_m|)

where two empty masks agree. It is 0 for equal masks and 1 for disjoint ones, does not depend on the
order of models, and hardly on the grid. Pairwise Dice is what the benchmark of failure detection in
medical segmentation recommends (Zenk et al. 2024, "Comparative benchmarking of failure detection
methods in medical image segmentation"). One model alone cannot disagree: 1 − the Dice that it
expects of itself, 2·Σ_h p / (|h| + Σp), stands for it.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
"""Counts ``[organ, k]`` over the voxels of a volume (or of part of it: parts add up), for N models:
|h_n| of every model; |h_n ∧ h_m| of every pair n < m, in the order of `itertools.combinations` (of
one model alone instead Σv where p > 0.5); Σv over all models. p = v / 255."""


def no_counts(models: int, organs: int) -> Counts:
    """Counts of no voxel."""
    pairs = models * (models - 1) // 2
    return np.zeros((organs, models + max(pairs, 1) + 1), np.int64)


def disagreement(counts: Counts, models: int) -> NDArray[np.float64]:
    """See the module; ``[organ]``, 0..1."""
    sizes, shared = counts[:, :models], counts[:, models:-1]
    if models == 1:
        whole = 255 * sizes[:, 0] + counts[:, -1]
        return 1.0 - _ratio(2 * shared[:, 0], whole)
    dice = [
        _ratio(2 * shared[:, pair], sizes[:, n] + sizes[:, m])
        for pair, (n, m) in enumerate(combinations(range(models), 2))
    ]
    return np.asarray(1.0 - np.mean(dice, axis=0))


def mean_probability_sum(counts: Counts, models: int) -> NDArray[np.float64]:
    """Σ over the voxels of the mean soft prediction, ``[organ]``: the volume in voxels that the
    models expect."""
    return np.asarray(counts[:, -1] / (255.0 * models))


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """1 where both are 0."""
    return np.divide(part, whole, out=np.ones(len(part)), where=whole != 0)
