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
    shape = _shape(masks)
    for name in masks:
        scheme[name]
    first = [name for name in priority or () if name in masks]
    order = list(dict.fromkeys([*first, *(n for n in scheme.names if n in masks)]))
    labels = np.zeros(shape, np.uint8, order="F")
    overlaps = {}
    for name in order:
        claimed = masks[name] != 0
        free = labels == BACKGROUND
        overlaps[name] = int(np.count_nonzero(claimed & ~free))
        labels[claimed & free] = scheme[name].label
    return CombinedLabels(labels, overlaps)


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


def assemble(candidates: Mapping[str, Sequence[Candidate]], scheme: OrganScheme) -> AssembledLabels:
    """One label map of a case: for every organ its preferred label.

    Where the chosen masks overlap, the better source has the voxel, then the scheme's order: a
    pseudo label never takes a voxel from an original one.

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
    names = [name for name in scheme.names if name in chosen]
    priority = sorted(names, key=lambda name: SOURCE_PRIORITY.index(chosen[name].label.source))
    combined = combine(
        {organ: candidate.mask for organ, candidate in chosen.items()}, scheme, priority=priority
    )
    provenance = {name: chosen[name].label for name in names}
    return AssembledLabels(combined.labels, provenance, combined.overlaps)
