"""Label assembly: one label map out of masks per organ, original over revised over pseudo (§3.2
⑥)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_core.errors import GridMismatch, InvalidInput
from atlas_core.organs import BACKGROUND, OrganScheme
from atlas_core.records import Label, LabelSource

SOURCE_PRIORITY = (LabelSource.ORIGINAL, LabelSource.REVISED, LabelSource.PSEUDO)
"""Whose word counts first."""


@dataclass(frozen=True)
class CombinedLabels:
    """Masks made one label map.

    Attributes:
        labels: uint8 ``[i, j, k]``, the scheme's label ids.
        overlaps: organ → voxels that its mask claimed but an organ of higher priority got.
    """

    labels: NDArray[np.uint8]
    overlaps: dict[str, int]

    @property
    def overlap_voxels(self) -> int:
        """Voxels lost to another organ, summed over organs."""
        return sum(self.overlaps.values())


@dataclass(frozen=True)
class Candidate:
    """One label of one organ that may go into the assembled map.

    Attributes:
        label: its record: organ, source, who and when.
        mask: ``[i, j, k]``, non-zero where the organ is.
    """

    label: Label
    mask: NDArray[Any]


@dataclass(frozen=True)
class AssembledLabels:
    """The assembled label map and where each organ of it came from.

    Attributes:
        labels: uint8 ``[i, j, k]``, the scheme's label ids.
        provenance: organ → the label that was taken, in the scheme's order; organs without any
            candidate are missing.
        overlaps: organ → voxels lost to an organ of higher priority.
    """

    labels: NDArray[np.uint8]
    provenance: dict[str, Label]
    overlaps: dict[str, int]


def combine(
    masks: Mapping[str, NDArray[Any]],
    scheme: OrganScheme,
    *,
    priority: Sequence[str] | None = None,
) -> CombinedLabels:
    """One label map out of a mask per organ.

    Where masks overlap, the organ named first in `priority` has the voxel; None: the scheme's
    order. Organs that `priority` does not name come last, in the scheme's order. The result does
    not depend on the order of `masks`.

    Args:
        masks: organ name → ``[i, j, k]``, non-zero where the organ is.

    Raises:
        UnknownLabel: an organ that is not in `scheme`.
        GridMismatch: masks of different shapes.
        InvalidInput: no mask at all.
    """
    painter = LabelPainter(_shape(masks), scheme)
    for name in masks:
        scheme[name]
    first = [name for name in priority or () if name in masks]
    order = list(dict.fromkeys([*first, *(n for n in scheme.names if n in masks)]))
    overlaps = {name: painter.paint(name, masks[name]) for name in order}
    return CombinedLabels(painter.labels, overlaps)


class LabelPainter:
    """Makes a label map of one mask after the other: what is painted first stays.

    The masks need not be in memory together.

    Attributes:
        labels: uint8 ``[i, j, k]`` so far.
    """

    def __init__(self, shape: tuple[int, ...], scheme: OrganScheme) -> None:
        self.labels: NDArray[np.uint8] = np.zeros(shape, np.uint8, order="F")
        self._scheme = scheme

    def paint(self, organ: str, mask: NDArray[Any]) -> int:
        """Give `organ` the voxels of `mask` that are still free.

        Returns:
            Voxels of `mask` that another organ has.

        Raises:
            UnknownLabel: an organ that is not in the scheme.
            GridMismatch: a mask of another shape.
        """
        label = self._scheme[organ].label
        if mask.shape != self.labels.shape:
            raise GridMismatch(
                f"the mask of {organ} has another shape than the others",
                expected=self.labels.shape, got=mask.shape,
            )  # fmt: skip
        claimed = mask != 0
        wanted = int(np.count_nonzero(claimed))
        claimed &= self.labels == BACKGROUND
        self.labels[claimed] = label
        return wanted - int(np.count_nonzero(claimed))


def _shape(masks: Mapping[str, NDArray[Any]]) -> tuple[int, ...]:
    shapes = {name: mask.shape for name, mask in masks.items()}
    if not shapes:
        raise InvalidInput("no mask to combine", expected="at least one organ")
    (reference, shape), *others = shapes.items()
    for name, other in others:
        if other != shape:
            raise GridMismatch(
                f"masks of {reference} and {name} have different shapes", expected=shape, got=other
            )
    return shape


def preferred(labels: Iterable[Label]) -> Label:
    """The label that counts, of one organ of one case: original over revised over pseudo.

    Of two labels from one source the newer counts (of equal age the one with the greater checksum,
    so that the choice never depends on the order). An original label counts even where it is empty:
    "no gallbladder" is an annotation too, and clears what a model saw there.
    """
    return min(
        sorted(labels, key=lambda label: (label.created_at, label.sha256), reverse=True),
        key=lambda label: SOURCE_PRIORITY.index(label.source),
    )


def paint_order(labels: Iterable[Label], scheme: OrganScheme) -> tuple[Label, ...]:
    """One label per organ in the order in which they have their voxels where masks overlap.

    The better source first. Of two revised labels the newer, whose author saw the older; of others
    the organ that the scheme names first: original masks come with their dataset, all at once, and
    pseudo labels of one prediction never overlap, as the voxel went to the higher mean probability.
    """

    def key(label: Label) -> tuple[int, float, int]:
        revised = label.source is LabelSource.REVISED
        newest_first = -label.created_at.timestamp() if revised else 0.0
        return SOURCE_PRIORITY.index(label.source), newest_first, scheme.names.index(label.organ)

    return tuple(sorted(labels, key=key))


def assemble(candidates: Mapping[str, Sequence[Candidate]], scheme: OrganScheme) -> AssembledLabels:
    """One label map of a case: for every organ its preferred label.

    Where the chosen masks overlap, `paint_order` tells who has the voxel: a pseudo label never
    takes one from an original.

    Args:
        candidates: organ name → its labels from all sources.

    Raises:
        UnknownLabel, GridMismatch, InvalidInput: as `combine`; also a label filed under another
        organ.
    """
    chosen: dict[str, Candidate] = {}
    for organ, found in candidates.items():
        if any(candidate.label.organ != organ for candidate in found):
            raise InvalidInput(
                "label of another organ", expected=organ,
                got=", ".join(sorted({candidate.label.organ for candidate in found})),
            )  # fmt: skip
        if found:
            best = preferred(candidate.label for candidate in found)
            chosen[organ] = next(candidate for candidate in found if candidate.label is best)
    for organ in chosen:
        scheme[organ]
    names = [name for name in scheme.names if name in chosen]
    order = paint_order((candidate.label for candidate in chosen.values()), scheme)
    priority = [label.organ for label in order]
    combined = combine(
        {organ: candidate.mask for organ, candidate in chosen.items()}, scheme, priority=priority
    )
    provenance = {name: chosen[name].label for name in names}
    return AssembledLabels(combined.labels, provenance, combined.overlaps)
