"""Post-processing of pseudo labels: drops components that are too small or too many."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage

from atlas_core.frozen_model import FrozenModel
from atlas_core.imaging.label_maps import TOUCHING, bounding_box
from atlas_core.organs import OrganName


class PostProcessing(FrozenModel):
    """Which components of an organ's pseudo label are kept. The defaults keep all."""

    largest: int | None = Field(
        default=None, ge=1, description="Keep at most this many connected components. Empty: all."
    )
    min_ml: float = Field(default=0.0, ge=0, description="Drop components smaller than this (ml).")

    @property
    def keeps_all(self) -> bool:
        """Whether nothing would ever be removed."""
        return self.largest is None and self.min_ml == 0


PostProcessingRules = Mapping[OrganName, PostProcessing]
"""Organ → its rule; organs that are not named are left unchanged."""


def post_processed(mask: NDArray[Any], rule: PostProcessing, voxel_ml: float) -> NDArray[np.bool_]:
    """The components of `mask` that `rule` keeps.

    Components touch by a face, an edge or a corner. Of equally large ones the first in the order
    of the voxels (the last axis slowest) is kept.

    Args:
        mask: ``[i, j, k]``, non-zero where the organ is.
        voxel_ml: volume of a voxel in millilitres.

    >>> row = np.array([1, 0, 1, 1, 0, 1, 1, 1]).reshape(8, 1, 1)
    >>> post_processed(row, PostProcessing(largest=1), 1.0).ravel().astype(int).tolist()
    [0, 0, 0, 0, 0, 1, 1, 1]
    """
    kept: NDArray[np.bool_] = np.zeros_like(mask, dtype=np.bool_)
    box = bounding_box(mask)
    if box is None:
        return kept
    # Numbered along the last axis slowest, in whichever order the array lies in memory.
    numbers, count = ndimage.label((mask[box] != 0).T, structure=TOUCHING)
    sizes = np.bincount(numbers.ravel(), minlength=count + 1)[1:]
    order = np.argsort(-sizes, kind="stable")[: rule.largest]
    keep = np.zeros(count + 1, np.bool_)
    keep[1 + order] = sizes[order] * voxel_ml >= rule.min_ml
    kept[box] = keep[numbers].T
    return kept
