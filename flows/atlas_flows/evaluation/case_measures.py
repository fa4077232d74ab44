"""Everything the paper's tables need of one case, read from its files once.

A case is read once: its pseudo label, its assembled map, its truth, one attention map at a time.
All of it is freed before the next case, so memory is bounded by the largest CT: a byte per voxel
for each label map and one attention map, and some scratch within the box around one organ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from atlas_core.assembly import Assemblies, Assembly, read_assembled
from atlas_core.catalog import CaseAgreement, Catalog, OrganAgreement
from atlas_core.errors import AtlasError
from atlas_core.frozen_model import FrozenModel
from atlas_core.imaging import read_cropped, read_label
from atlas_core.overlap import dice
from atlas_core.records import Case, LabelSource, Reading, Score
from atlas_core.store import CaseStore
from atlas_models.evaluation import organ_agreement
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from atlas_flows.evaluation.attention_regions import (
    Detection,
    RegionRule,
    box_around,
    count_regions,
    detect,
)
from atlas_flows.evaluation.error_found import ErrorOfCase
from atlas_flows.evaluation.false_positives import FalseRegions
from atlas_flows.evaluation.ground_truth import GroundTruthCase
from atlas_flows.evaluation.label_quality import LabelKind
from atlas_flows.evaluation.thick_errors import BorderComparison, compare


class OrganMeasure(FrozenModel):
    """One organ of one case against the truth."""

    model_config = ConfigDict(arbitrary_types_allowed=True)  # counts are arrays

    organ: str
    truth_ml: float
    pseudo_ml: float
    wrong_ml: float = Field(description="Voxels where pseudo label and truth differ.")
    pseudo: OrganAgreement
    assembled: OrganAgreement | None = Field(
        description="Of the assembled map; None where the case was not assembled in the iteration, "
        "or the map holds an original label of the organ."
    )
    detection: Detection | None = Field(description="None where attention was not asked for.")
    comparison: BorderComparison | None = Field(
        default=None, description="As `detection`, on demand."
    )
    false_regions: int | None = Field(description="Where the organ is truly absent, else None.")


class CaseMeasures(FrozenModel):
    """One case under one reading and ensemble."""

    case_id: str
    kind: str
    attention_ml: float = Field(description="Summed over the organs that are compared.")
    assembled: bool = Field(description="Whether the case was assembled in the iteration.")
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

    def comparisons(self) -> list[BorderComparison]:
        """What stands beside Table 1, per organ."""
        return [one.comparison for one in self.organs if one.comparison is not None]

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
        beside_border: also what stands beside it, `thick_errors.compare`; takes more time.
        nsd: surface Dice too; needs torch and most of the time.
        until: only what was assembled before counts; None: whatever was assembled last.
    """

    rule: RegionRule = field(default_factory=RegionRule)
    attention: bool = True
    beside_border: bool = False
    nsd: bool = True
    until: datetime | None = None


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
    assembly = _assembly(catalog, score, what.until)
    assembled = None if assembly is None else read_assembled(store, case, assembly).voxels
    compared = set() if assembly is None else _compared_organs(catalog, assembly)
    truth = known.masks()
    sizes = {size.organ: size.attention_ml for size in score.organs}
    nothing = np.zeros(case.shape, np.bool_, order="F")
    organs, scheme = [], catalog.organ_scheme()
    for organ in known.organs:
        if organ not in sizes:
            continue  # the ensemble does not predict it
        attention = _attention(case, store, score, organ) if what.attention else None
        label = scheme[organ].label
        masks = _Masks(
            pseudo=pseudo == label,
            assembled=assembled == label if organ in compared and assembled is not None else None,
            truth=truth.get(organ, nothing),
            attention=attention,
            lowest_byte=what.rule.lowest_byte(score.reading),
        )
        organs.append(_organ(organ, case, masks, what))
    return CaseMeasures(
        case_id=case.id,
        kind=known.kind,
        attention_ml=math.fsum(sizes[organ.organ] for organ in organs),
        assembled=assembly is not None,
        organs=tuple(organs),
    )


@dataclass(frozen=True)
class _Masks:
    """Where one organ is predicted, assembled, in truth, and attended (from `lowest_byte` on);
    ``[i, j, k]``."""

    pseudo: NDArray[np.bool_]
    assembled: NDArray[np.bool_] | None
    truth: NDArray[np.bool_]
    attention: NDArray[np.uint8] | None
    lowest_byte: int


def _organ(organ: str, case: Case, masks: _Masks, what: MeasurementOptions) -> OrganMeasure:
    voxel_ml = case.geometry.voxel_ml
    truth_voxels = int(np.count_nonzero(masks.truth))
    error = masks.pseudo ^ masks.truth
    pseudo = _agreement(organ, masks.pseudo, masks.truth, case, what)
    assembled: OrganAgreement | None = None
    if masks.assembled is not None:
        # Most cases hold the pseudo label as it is, and surfaces take most of the time.
        same = np.array_equal(masks.assembled, masks.pseudo)
        assembled = pseudo if same else _agreement(organ, masks.assembled, masks.truth, case, what)
    detection = comparison = None
    if masks.attention is not None:
        attended = masks.attention >= masks.lowest_byte
        detection = detect(error, attended, voxel_ml, what.rule)
    if masks.attention is not None and what.beside_border:
        comparison = compare(
            masks.pseudo,
            masks.truth,
            masks.attention,
            case.geometry.spacing_mm,
            what.rule,
            masks.lowest_byte,
        )
    return OrganMeasure(
        organ=organ,
        truth_ml=truth_voxels * voxel_ml,
        pseudo_ml=int(np.count_nonzero(masks.pseudo)) * voxel_ml,
        wrong_ml=int(np.count_nonzero(error)) * voxel_ml,
        pseudo=pseudo,
        assembled=assembled,
        detection=detection,
        comparison=comparison,
        false_regions=None if truth_voxels else count_regions(masks.pseudo, voxel_ml, what.rule),
    )


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
    return OrganAgreement(organ=organ, dice=dice(mask[box], truth[box]), nsd=None)


def _assembly(catalog: Catalog, score: Score, until: datetime | None) -> Assembly | None:
    """What was assembled of a case in the iteration of `score`: the last assembly before `until`,
    of this prediction, or of people's labels alone."""
    found = None
    for assembly in Assemblies(catalog).history(score.case_id):
        of_people = assembly.ensemble is None
        of_score = (assembly.reading, assembly.ensemble) == (score.reading, score.ensemble)
        if (of_people or of_score) and (until is None or assembly.created_at < until):
            found = assembly
    return found


def _compared_organs(catalog: Catalog, assembly: Assembly) -> set[str]:
    """The organs of an assembled map that can be judged: an original label may be the truth itself,
    and an organ without any label was left open."""
    original = catalog.labels(assembly.case_id, LabelSource.ORIGINAL)
    return set(assembly.by_organ) - {label.organ for label in original}


def _read_on_grid(case: Case, store: CaseStore, score: Score) -> NDArray[np.integer]:
    path = store.pseudo_label_path(case.id, score.reading, score.ensemble, score.number)
    volume = read_label(path)
    case.geometry.require_same_grid(volume.geometry, this="CT", that="pseudo label", case=case.id)
    return volume.voxels


def _attention(case: Case, store: CaseStore, score: Score, organ: str) -> NDArray[np.uint8]:
    path = store.attention_path(case.id, score.reading, score.ensemble, organ, score.number)
    if not any(size.attention_voxels for size in score.organs if size.organ == organ):
        return np.zeros(case.shape, np.uint8)  # a map of zeros has no file
    return np.asarray(read_cropped(path, case.geometry, case=case.id), np.uint8)
