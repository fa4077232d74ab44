"""What each member of an ensemble says by itself: its own label map, on the CT's grid.

A voxel gets the organ of the member's largest soft prediction above 0.5: what an ensemble of this
member alone would give as its pseudo label, on the same fusion grid. An annotator who sees that one
member has it right takes its shape and need not draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from atlas_attention.fusion import HALF_BYTE, Fused, Panel, SoftPredictions
from atlas_attention.scoring.native_grid import NativeGrid, NativeSlab


class MemberLabels:
    """Turns the soft predictions of all members, slab by slab, into a label map of each.

    Args:
        panels: which members say something about which organs; see `fusion.Panel`.
        organs: channels of the ensemble.
        open_grid: a new way from the fusion grid to the CT's.
    """

    def __init__(
        self, panels: Sequence[Panel], organs: int, open_grid: Callable[[], NativeGrid]
    ) -> None:
        self._panels = panels
        self._organs = organs
        members = sorted({member for panel in panels for member in panel.members})
        self._grids = {member: open_grid() for member in members}

    def push(self, soft: Sequence[SoftPredictions]) -> Iterator[tuple[int, NativeSlab]]:
        """Adds the next slices of the fusion grid, of each panel uint8 ``[voice, organ of the
        panel, z, y, x]``; yields every slab that is final then, and whose it is."""
        nothing = np.zeros((0, *soft[0].shape[2:]), np.uint8)
        for member, grid in self._grids.items():
            said = self._of_member(member, soft)
            label = _label(said) if grid.reads_labels else np.zeros(said.shape[1:], np.uint8)
            for slab in grid.push(Fused(nothing, said, label)):
                yield member, slab

    def _of_member(self, member: int, soft: Sequence[SoftPredictions]) -> NDArray[np.uint8]:
        """Its soft prediction of every organ of the ensemble, ``[organ, z, y, x]``."""
        if len(self._panels) == 1:
            return soft[0][self._panels[0].members.index(member)]
        said = np.zeros((self._organs, *soft[0].shape[2:]), np.uint8)
        for panel, part in zip(self._panels, soft, strict=True):
            if member in panel.members:
                said[list(panel.organs)] = part[panel.members.index(member)]
        return said


def _label(said: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """1 + channel of the largest value above one half, ties to the lower channel, else 0."""
    best = np.full(said.shape[1:], HALF_BYTE - 1, np.uint8)
    label = np.zeros(said.shape[1:], np.uint8)
    for channel, values in enumerate(said, start=1):
        larger = values > best
        if larger.any():
            best[larger] = values[larger]
            label[larger] = channel
    return label
