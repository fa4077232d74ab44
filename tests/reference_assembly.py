"""Label assembly of masks in memory: the reference that the tests of `assembly.priority` go by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from atlas_core.assembly import preferred
from atlas_core.assembly.priority import LabelPainter, paint_order
from atlas_core.errors import GridMismatch, InvalidInput
from atlas_core.imaging import distinct_values
from atlas_core.imaging.label_maps import organ_mask, require_known_labels
from atlas_core.organs import OrganScheme
from atlas_core.records import Label
from numpy.typing import NDArray


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


def map_labels(
    voxels: NDArray[Any], organs: Mapping[int, str | None]
) -> dict[str, NDArray[np.bool_]]:
    """Masks of a dataset's organs out of its label map.

    Args:
        voxels: label values ``[i, j, k]``, any integer type.
        organs: label value → organ name; several values may name one organ and are joined (kidney,
            its tumour and its cyst). None: a known value that is no organ of ours. The background
            need not be named.

    Returns:
        Organ name → mask of the shape of `voxels`, for every organ named, also one that occurs
        nowhere; in the order of `organs`.

    Raises:
        UnknownLabel: a value that `organs` does not name.
    """
    require_known_labels(distinct_values(voxels), organs)
    names = dict.fromkeys(name for name in organs.values() if name is not None)
    return {
        name: organ_mask(voxels, [value for value, organ in organs.items() if organ == name])
        for name in names
    }
