"""Overlap of two masks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from atlas_core.errors import GridMismatch


def dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float | None:
    """Dice coefficient 2·|A ∩ B| / (|A| + |B|) of two masks A and B, the DSC of the paper.

    Args:
        one, other: masks of the same shape, any number of axes.

    Returns:
        In [0, 1]; None where both masks are empty.

    Raises:
        GridMismatch: masks of different shapes.

    >>> dice(np.array([True, True, False]), np.array([True, False, False]))
    0.6666666666666666
    >>> dice(np.zeros(3, np.bool_), np.zeros(3, np.bool_)) is None
    True
    """
    if one.shape != other.shape:
        raise GridMismatch("masks have different shapes", expected=one.shape, got=other.shape)
    size = int(np.count_nonzero(one)) + int(np.count_nonzero(other))
    return 2.0 * int(np.count_nonzero(one & other)) / size if size else None
