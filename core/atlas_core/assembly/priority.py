"""Which label counts, and which organ gets a voxel: original over revised over pseudo (§3.2 ⑥)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_core.errors import GridMismatch
from atlas_core.imaging.label_maps import VoxelBox
from atlas_core.organs import BACKGROUND, OrganScheme
from atlas_core.records import Label, LabelSource

SOURCE_PRIORITY = (LabelSource.ORIGINAL, LabelSource.REVISED, LabelSource.PSEUDO)
"""Sources of labels, the one that prevails first."""


class LabelPainter:
    """Builds a label map from one mask after another; a voxel keeps the first organ painted on it.

    Only one mask needs to be in memory at a time.

    Attributes:
        labels: uint8 ``[i, j, k]`` so far.
    """

    def __init__(self, shape: tuple[int, ...], scheme: OrganScheme) -> None:
        self.labels: NDArray[np.uint8] = np.zeros(shape, np.uint8, order="F")
        self._scheme = scheme

    def paint(self, organ: str, mask: NDArray[Any], box: VoxelBox | None = None) -> int:
        """Give `organ` the voxels of `mask` that are still free.

        Args:
            mask: ``[i, j, k]`` of `box`.
            box: where the mask lies; None: everywhere.

        Returns:
            Number of voxels of `mask` that belong to another organ.

        Raises:
            UnknownLabel: an organ that is not in the scheme.
            GridMismatch: a mask of another shape.
        """
        label = self._scheme[organ].label
        labels = self.labels if box is None else self.labels[box]
        if mask.shape != labels.shape:
            raise GridMismatch(
                f"the mask of {organ} has another shape than the others",
                expected=labels.shape, got=mask.shape,
            )  # fmt: skip
        claimed = mask != 0
        wanted = int(np.count_nonzero(claimed))
        claimed &= labels == BACKGROUND
        labels[claimed] = label
        return wanted - int(np.count_nonzero(claimed))


def preferred(labels: Iterable[Label]) -> Label:
    """The label in force of one organ of one case: original over revised over pseudo.

    Of two labels from one source the newer wins (of equal age the one with the greater checksum, so
    that the choice never depends on the order). An original label wins even where it is empty: "no
    gallbladder" is an annotation too, and overrides what a model predicts there.
    """
    return min(
        sorted(labels, key=lambda label: (label.created_at, label.sha256), reverse=True),
        key=lambda label: SOURCE_PRIORITY.index(label.source),
    )


def paint_order(labels: Iterable[Label], scheme: OrganScheme) -> tuple[Label, ...]:
    """The labels, one per organ, in the order in which overlapping masks take precedence.

    The better source comes first. Of two revised labels the newer comes first, as its author saw
    the older; otherwise the scheme's order decides: original masks all come with their dataset at
    once, and pseudo labels of one prediction never overlap, as each voxel went to the organ of the
    highest mean probability.
    """

    def key(label: Label) -> tuple[int, float, int]:
        revised = label.source is LabelSource.REVISED
        newest_first = -label.created_at.timestamp() if revised else 0.0
        return SOURCE_PRIORITY.index(label.source), newest_first, scheme.names.index(label.organ)

    return tuple(sorted(labels, key=key))
