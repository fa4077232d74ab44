"""Everything the paper's tables need of one case, in one reading of its files.

A case is read once: its pseudo label, its truth, one attention map at a time. Nothing of it is held
when the next one begins, so memory is bounded by the largest CT: a byte per voxel for each label
map and one attention map, and a bit of scratch within the box around one organ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from atlas_core.assembly import preferred
from atlas_core.catalog import CaseAgreement, Catalog, OrganAgreement
from atlas_core.errors import AtlasError
from atlas_core.frozen_model import FrozenModel
from atlas_core.imaging import read_label, read_stored
from atlas_core.organs import ABDOMEN_ATLAS, OrganScheme
from atlas_core.records import Case, Label, LabelSource, Reading, Score
from atlas_core.store import CaseStore
from atlas_models.evaluation import organ_agreement
from numpy.typing import NDArray
from pydantic import Field

from atlas_flows.evaluation.attention_regions import (
    Detection,
    RegionRule,
    box_around,
    count_regions,
    detect,
)
from atlas_flows.evaluation.error_found import ErrorOfCase
from atlas_flows.evaluation.false_positives import FalseRegions
from atlas_flows.evaluation.ground_truth import GroundTruthCase, label_masks
from atlas_flows.evaluation.label_quality import LabelKind


class OrganMeasure(FrozenModel):
    """One organ of one case against the truth."""

    organ: str
    truth_ml: float
    pseudo_ml: float
    wrong_ml: float = Field(description="Voxels where pseudo label and truth differ.")
    pseudo: OrganAgreement
    assembled: OrganAgreement | None = Field(
        description="Of the label that the atlas held; None where that label is the truth itself."
    )
    detection: Detection | None = Field(description="None where attention was not asked for.")
    false_regions: int | None = Field(description="Where the organ is truly absent, else None.")


class CaseMeasures(FrozenModel):
    """One case under one reading and ensemble."""

    case_id: str
    kind: str
    attention_ml: float = Field(description="Summed over the organs that are compared.")
    organs: tuple[OrganMeasure, ...]

    def agreement(self, kind: LabelKind) -> CaseAgreement:
        """Dice and NSD of every organ, as Table 5 takes them."""
        rows = [
            organ.pseudo if kind is LabelKind.PSEUDO else organ.assembled for organ in self.organs
        ]
        return CaseAgreement(
            case_id=self.case_id, organs=tuple(row for row in rows if row is not None)
        )

    def error(self) -> ErrorOfCase:
        """The case as a point of the curve of Fig. 4."""
        dice = [one.pseudo.dice for one in self.organs if one.pseudo.dice is not None]
        return ErrorOfCase(
            case_id=self.case_id,
            attention_ml=self.attention_ml,
            wrong_ml=math.fsum(organ.wrong_ml for organ in self.organs),
            dice_error=1.0 - math.fsum(dice) / len(dice) if dice else 0.0,
        )

    def detections(self) -> list[tuple[str, Detection]]:
        """The counts of Table 1, by organ."""
        return [(one.organ, one.detection) for one in self.organs if one.detection is not None]

    def false_positives(self) -> list[FalseRegions]:
        """What the pseudo label holds of organs that are absent (§5)."""
        return [
            FalseRegions(
                case_id=self.case_id,
                organ=organ.organ,
                regions=organ.false_regions,
                ml=organ.pseudo_ml,
            )
            for organ in self.organs
            if organ.false_regions is not None
        ]


@dataclass(frozen=True)
class MeasurementOptions:
    """What is measured.

    Attributes:
        rule: what counts as a region.
        attention: count regions for Table 1; reads an attention map per organ.
        nsd: surface Dice too; needs torch and most of the time.
        until: labels that were made before count for the assembled label; None: all.
        scheme: label ids of the pseudo label.
    """

    rule: RegionRule = field(default_factory=RegionRule)
    attention: bool = True
    nsd: bool = True
    until: datetime | None = None
    scheme: OrganScheme = ABDOMEN_ATLAS


def measure_cases(
    known: Iterable[GroundTruthCase],
    catalog: Catalog,
    store: CaseStore,
    reading: Reading,
    ensemble: str,
    what: MeasurementOptions,
) -> Iterator[CaseMeasures]:
    """Measure cases one after another; cases that `ensemble` has not scored are passed over.

    Raises:
        AtlasError: a file of a case is missing, cannot be read, or lies on another grid.
    """
    for one in known:
        score = catalog.score(one.case.id, reading, ensemble)
        if score is None:
            continue
        try:
            yield _measure(one, catalog, store, score, what)
        except AtlasError as error:
            raise error if error.case else error.with_case(one.case.id) from None


def _measure(
    known: GroundTruthCase,
    catalog: Catalog,
    store: CaseStore,
    score: Score,
    what: MeasurementOptions,
) -> CaseMeasures:
    case = known.case
    pseudo = _read_on_grid(case, store, score)
    truth = known.masks()
    labels = _people_labels(catalog.labels(case.id), what.until)
    sizes = {size.organ: size.attention_ml for size in score.organs}
    nothing = np.zeros(case.shape, np.bool_, order="F")
    organs = []
    for organ in known.organs:
        if organ not in sizes:
            continue  # the ensemble does not predict it
        attended = _attended(case, store, score, organ, what) if what.attention else None
        masks = _Masks(pseudo == what.scheme[organ].label, truth.get(organ, nothing), attended)
        held = labels.get(organ)
        organs.append(_organ(organ, case, store, masks, held, what))
    return CaseMeasures(
        case_id=case.id,
        kind=known.kind,
        attention_ml=math.fsum(sizes[organ.organ] for organ in organs),
        organs=tuple(organs),
    )


@dataclass(frozen=True)
class _Masks:
    """Where one organ is predicted, is in truth, and is attended; ``[i, j, k]``."""

    pseudo: NDArray[np.bool_]
    truth: NDArray[np.bool_]
    attended: NDArray[np.bool_] | None


def _organ(
    organ: str,
    case: Case,
    store: CaseStore,
    masks: _Masks,
    held: Label | None,
    what: MeasurementOptions,
) -> OrganMeasure:
    voxel_ml = case.geometry.voxel_ml
    truth_voxels = int(np.count_nonzero(masks.truth))
    error = masks.pseudo ^ masks.truth
    pseudo = _agreement(organ, masks.pseudo, masks.truth, case, what)
    return OrganMeasure(
        organ=organ,
        truth_ml=truth_voxels * voxel_ml,
        pseudo_ml=int(np.count_nonzero(masks.pseudo)) * voxel_ml,
        wrong_ml=int(np.count_nonzero(error)) * voxel_ml,
        pseudo=pseudo,
        assembled=_assembled(organ, case, store, masks.truth, held, pseudo, what),
        detection=(
            None if masks.attended is None else detect(error, masks.attended, voxel_ml, what.rule)
        ),
        false_regions=None if truth_voxels else count_regions(masks.pseudo, voxel_ml, what.rule),
    )


def _assembled(
    organ: str,
    case: Case,
    store: CaseStore,
    truth: NDArray[np.bool_],
    held: Label | None,
    pseudo: OrganAgreement,
    what: MeasurementOptions,
) -> OrganAgreement | None:
    if held is None:
        return pseudo
    if held.source is LabelSource.ORIGINAL:
        return None
    mask = label_masks(case, store, {organ: held})[organ]
    return _agreement(organ, mask, truth, case, what)


def _agreement(
    organ: str,
    mask: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    case: Case,
    what: MeasurementOptions,
) -> OrganAgreement:
    # The figures do not change within the box around both; the time does.
    box = box_around(mask, truth)
    if mask[box].any() and np.array_equal(mask[box], truth[box]):
        # What an annotator drew or a model hit exactly: no surface needs to be measured.
        return OrganAgreement(organ=organ, dice=1.0, nsd=1.0 if what.nsd else None)
    if what.nsd:
        return organ_agreement(organ, mask[box], truth[box], case.geometry.spacing_mm)
    size = int(np.count_nonzero(mask)) + int(np.count_nonzero(truth))
    both = int(np.count_nonzero(mask[box] & truth[box]))
    return OrganAgreement(organ=organ, dice=2.0 * both / size if size else None, nsd=None)


def _people_labels(labels: Iterable[Label], until: datetime | None) -> Mapping[str, Label]:
    """Of every organ the original or revised label that counted at that time."""
    by_organ: dict[str, list[Label]] = {}
    for label in labels:
        if label.source is not LabelSource.PSEUDO and (until is None or label.created_at < until):
            by_organ.setdefault(label.organ, []).append(label)
    return {organ: preferred(found) for organ, found in by_organ.items()}


def _read_on_grid(case: Case, store: CaseStore, score: Score) -> NDArray[np.integer]:
    volume = read_label(store.pseudo_label_path(case.id, score.reading, score.ensemble))
    case.geometry.require_same_grid(volume.geometry, this="CT", that="pseudo label", case=case.id)
    return volume.voxels


def _attended(
    case: Case, store: CaseStore, score: Score, organ: str, what: MeasurementOptions
) -> NDArray[np.bool_]:
    volume = read_stored(store.attention_path(case.id, score.reading, score.ensemble, organ))
    case.geometry.require_same_grid(volume.geometry, this="CT", that="attention", case=case.id)
    return np.asarray(volume.voxels >= what.rule.lowest_byte(score.reading))
