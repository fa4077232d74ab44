"""The annotator of the study, who knows the truth: what is corrected, and what that costs.

Costs are modelled, not measured: 2 s a click and 10 s a stroke (`shape_taking`), everything drawn
by hand slice by slice on the study's grid, and what looking takes by the constants below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from atlas_core.assembly import LabelPainter, paint_order, preferred
from atlas_core.catalog import now
from atlas_core.imaging.label_maps import TOUCHING
from atlas_core.overlap import dice
from atlas_core.phantoms import PHANTOM_ORGANS
from atlas_core.records import Label, LabelSource, Reading
from atlas_flows.demos.shape_taking import Effort, drawing
from atlas_flows.evaluation.attention_regions import RegionRule
from numpy.typing import NDArray
from scipy import ndimage
from study.cases import LABELS, StudyCase
from study.models import Scored

Mask = NDArray[np.bool_]

WRONG_BELOW_DICE = 0.9
"""As the simulated annotator of the loop demo."""

SECONDS_PER_CASE = 30.0
"""To open a case and to look through it."""

SECONDS_PER_ORGAN = 10.0
"""To look at one organ of a case that is revised as a whole."""

SECONDS_PER_REGION = 5.0
"""To go to one region and to look at it."""

REGION = RegionRule()

LEAST_VOXELS = 4
"""Smaller attended regions are not worth a look on a grid of 9 mm."""

MARGIN = 1
"""Voxels around a region that are looked at, too."""


@dataclass
class Revised:
    """What people made of one case.

    Attributes:
        masks: organ → its label; of an organ that was looked at in part, right where it was.
        looked: organ → where it was looked at; an organ of `masks` that is missing here: all of it.
    """

    masks: dict[str, Mask] = field(default_factory=dict)
    looked: dict[str, Mask] = field(default_factory=dict)


def revise_case(
    case: StudyCase, drawn: NDArray[np.uint8], before: Revised
) -> tuple[Revised, float]:
    """Organs whose label is wrong are replaced by the truth.

    Args:
        drawn: the labels in force.

    Returns:
        What people made of the case, and minutes.
    """
    done = Revised(dict(before.masks), dict(before.looked))
    effort = Effort()
    for organ, value in LABELS.items():
        mine, true = drawn == value, case.truth == value
        overlap = dice(mine, true)
        if overlap is not None and overlap < WRONG_BELOW_DICE:
            effort = effort.plus(*drawing(mine, true))
            done.masks[organ] = true
            done.looked.pop(organ, None)
    return done, (effort.seconds + SECONDS_PER_CASE + SECONDS_PER_ORGAN * len(LABELS)) / 60


def attended_regions(scored: Scored) -> list[tuple[str, Mask]]:
    """Organ and voxels of every attended region of a case, with a margin, most attention first."""
    lowest = REGION.lowest_byte(Reading.PAPER)
    found: list[tuple[float, str, Mask]] = []
    for organ, attention in scored.attention.items():
        pieces, count = ndimage.label(attention >= lowest, TOUCHING)
        sizes = np.bincount(pieces.ravel(), minlength=count + 1)
        sums = ndimage.sum_labels(attention, pieces, np.arange(count + 1))
        for piece in range(1, count + 1):
            if sizes[piece] >= LEAST_VOXELS:
                mask = ndimage.binary_dilation(pieces == piece, TOUCHING, iterations=MARGIN)
                found.append((float(sums[piece]), organ, mask))
    found.sort(key=lambda one: -one[0])
    return [(organ, mask) for _, organ, mask in found]


def revise_region(
    case: StudyCase, drawn: NDArray[np.uint8], organ: str, where: Mask, before: Revised
) -> tuple[Revised, float]:
    """One organ is made right in one region.

    Returns:
        What people made of the case, and minutes.
    """
    mine, true = drawn == LABELS[organ], case.truth == LABELS[organ]
    mine = before.masks.get(organ, mine)
    right = np.where(where, true, mine)
    clicks, strokes = drawing(mine, right)
    done = Revised(dict(before.masks), dict(before.looked))
    if organ not in before.masks or organ in before.looked:  # else all of it is right already
        done.masks[organ] = right
        done.looked[organ] = where | before.looked.get(organ, np.zeros_like(where))
    return done, (Effort().plus(clicks, strokes).seconds + SECONDS_PER_REGION) / 60


def assembled(case: StudyCase, pseudo: NDArray[np.uint8], people: Revised) -> NDArray[np.uint8]:
    """The label map of a case by the rules of assembly (§3.2 ⑥): revised over pseudo.

    Of an organ that was looked at in part, the rest is the pseudo label's.
    """
    masks = {(o, LabelSource.PSEUDO): pseudo == value for o, value in LABELS.items()}
    for organ, mask in people.masks.items():
        where = people.looked.get(organ)
        rest = masks[organ, LabelSource.PSEUDO]
        masks[organ, LabelSource.REVISED] = mask if where is None else np.where(where, mask, rest)
    labels = [_label(case, organ, source) for organ, source in masks]
    chosen = [preferred([label for label in labels if label.organ == o]) for o in LABELS]
    painter = LabelPainter(case.ct.shape, PHANTOM_ORGANS)
    for label in paint_order(chosen, PHANTOM_ORGANS):
        painter.paint(label.organ, masks[label.organ, label.source])
    return painter.labels


def weights_of(people: Revised, pseudo: float) -> Mapping[str, float]:
    """Organ → how much its label counts: revised ones fully."""
    whole = set(people.masks) - set(people.looked)
    return {organ: 1.0 if organ in whole else pseudo for organ in LABELS}


_WHEN = now()


def _label(case: StudyCase, organ: str, source: LabelSource) -> Label:
    return Label(
        case_id=case.id, organ=organ, source=source, path=source.value, value=LABELS[organ],
        sha256="0" * 64, voxels=0, volume_ml=0.0, created_at=_WHEN,
    )  # fmt: skip
