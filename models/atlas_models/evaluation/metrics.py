"""How well a label map agrees with the truth: Dice and normalised surface Dice (NSD), per organ.

**Mean Dice** is the mean over organs of each organ's mean over the cases that have it
(`AgreementSummary.overall`), in every command, table and verdict. It is what the paper's tables
call Average (Tables 1, 5 and 6: the mean of the rows above it, for the deviations too), and what a
promotion is decided by: a rare organ counts as much as one that every case has. The mean over cases
of each case's mean is another number, as partial labels give the cases different organs.

NSD is MONAI's `compute_surface_dice` with subvoxel surfaces, which are those of DeepMind's
`surface-distance`: surface elements lie between voxels and count by their area in mm², whatever the
spacing. That package itself is not maintained (it needs NumPy 1), and counting border voxels, the
usual shortcut, makes the figure depend on how a CT was cut. Dice is `atlas_core.overlap.dice`.

Torch and MONAI are imported where NSD is computed; everything else does without.
"""

from __future__ import annotations

import csv
import io
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from atlas_core.catalog import CaseAgreement, OrganAgreement
from atlas_core.errors import GridMismatch, InvalidInput
from atlas_core.geometry import Float3
from atlas_core.overlap import dice
from numpy.typing import NDArray
from scipy import stats

NSD_TOLERANCE_MM = 1.0
"""The paper's (Tables 2, 5 and 6)."""

_MARGIN = 2
"""Voxels around both masks that a surface needs."""


def organ_agreement(
    organ: str, predicted: NDArray[np.bool_], truth: NDArray[np.bool_], spacing_mm: Float3
) -> OrganAgreement:
    """Dice and NSD of one organ; None, not 1, where both masks are empty.

    Args:
        predicted, truth: masks ``[i, j, k]`` on one grid.
        spacing_mm: of its voxels along i, j, k.

    Raises:
        GridMismatch: masks of different shapes.
    """
    if predicted.shape != truth.shape:
        raise GridMismatch(
            f"masks of {organ} have different shapes", expected=truth.shape, got=predicted.shape
        )
    overlap = dice(predicted, truth)
    nsd = None if overlap is None else surface_dice(predicted, truth, spacing_mm)
    return OrganAgreement(organ=organ, dice=overlap, nsd=nsd)


def surface_dice(
    predicted: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    spacing_mm: Float3,
    tolerance_mm: float = NSD_TOLERANCE_MM,
) -> float:
    """Share of both surfaces that lies within `tolerance_mm` of the other one; 0 if one is empty.

    At least one mask is not empty.
    """
    import torch
    from monai.metrics import compute_surface_dice

    box = _box(predicted | truth)
    # A surface at the edge of a volume is one: there is nothing beyond.
    masks = [
        torch.from_numpy(np.pad(mask[box], _MARGIN).astype(np.float32))[None, None]
        for mask in (predicted, truth)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an empty mask is an answer here, not an oversight
        value = compute_surface_dice(
            *masks,
            class_thresholds=[tolerance_mm],
            include_background=True,
            spacing=list(spacing_mm),
            use_subvoxels=True,
        )
    return float(np.clip(value.item(), 0.0, 1.0))


def _box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The smallest box around a mask that is not empty."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        inside = np.flatnonzero(mask.any(axis=others))
        box.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return tuple(box)


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of some figures; of a single one the deviation is 0.

    Attributes:
        count: how many there were; 0: mean and deviation are None.
    """

    count: int
    mean: float | None
    std: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if not values:
            return cls(0, None, None)
        # The sample's deviation, as tables of papers give it.
        std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        return cls(len(values), float(np.mean(values)), std)

    @classmethod
    def over_organs(cls, organs: Iterable[Spread], count: int) -> Spread:
        """The paper's row Average (Tables 1, 5 and 6): the mean of the organs' means, and the mean
        of their deviations. Organs without a figure are left out.

        Args:
            count: what the result counts.
        """
        known = [(s.mean, s.std) for s in organs if s.mean is not None and s.std is not None]
        if not known:
            return cls(0, None, None)
        means, deviations = zip(*known, strict=True)
        return cls(count, float(np.mean(means)), float(np.mean(deviations)))

    def __str__(self) -> str:
        return "–" if self.mean is None else f"{100 * self.mean:.1f} ± {100 * (self.std or 0):.1f}"


@dataclass(frozen=True)
class AgreementSummary:
    """Agreement over cases.

    Attributes:
        organs: organ → figure ("dice", "nsd") → spread over the cases that have the organ.
        overall: figure → mean over `organs` of their means and deviations; it counts the cases
            that have any organ. Its mean of "dice" is the mean Dice of this module's docstring.
    """

    cases: int
    organs: Mapping[str, Mapping[str, Spread]]
    overall: Mapping[str, Spread]

    @property
    def mean_dice(self) -> float:
        """Mean over organs of the mean over cases, in [0, 1]; what decides on a promotion.

        Raises:
            InvalidInput: no organ was in any case.
        """
        mean = self.overall["dice"].mean
        if mean is None:
            raise InvalidInput("no case holds an organ to compare", expected="labels with voxels")
        return mean


FIGURES = ("dice", "nsd")


def summarise(cases: Sequence[CaseAgreement]) -> AgreementSummary:
    """Mean and deviation of each organ over the cases, and their means over the organs."""
    names = list(dict.fromkeys(row.organ for case in cases for row in case.organs))
    organs = {
        name: {figure: Spread.of(_values(cases, figure, name)) for figure in FIGURES}
        for name in names
    }
    overall = {
        figure: Spread.over_organs(
            (row[figure] for row in organs.values()),
            count=sum(bool(_values([case], figure)) for case in cases),
        )
        for figure in FIGURES
    }
    return AgreementSummary(len(cases), organs, overall)


def _values(cases: Sequence[CaseAgreement], figure: str, organ: str | None = None) -> list[float]:
    return [
        value
        for case in cases
        for row in case.organs
        if organ in (None, row.organ) and (value := getattr(row, figure)) is not None
    ]


# --- two versions -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """One figure of two versions on the same cases.

    Attributes:
        pairs: cases for which both have a figure.
        difference: mean of the second version minus mean of the first.
        p_value: two-sided, by Wilcoxon's signed-rank test over the pairs; None where fewer than two
            of them differ.
    """

    pairs: int
    difference: float | None
    p_value: float | None

    @property
    def mark(self) -> str:
        """Stars of significance: * below 0.05, ** below 0.01, *** below 0.001; else "ns"."""
        if self.p_value is None:
            return ""
        limits = ((0.001, "***"), (0.01, "**"), (0.05, "*"))
        return next((mark for limit, mark in limits if self.p_value < limit), "ns")


def compare(
    first: Sequence[CaseAgreement], second: Sequence[CaseAgreement]
) -> dict[str, dict[str, Comparison]]:
    """Figure → organ → how two versions differ on the cases of both.

    The entry "mean" has the difference of the means over organs (`AgreementSummary.overall`). Its
    test pairs each case's mean over its organs: the organs of one case are no independent samples.

    Raises:
        InvalidInput: no case is in both.
    """
    later = {case.case_id: case for case in second}
    pairs = [(case, later[case.case_id]) for case in first if case.case_id in later]
    if not pairs:
        raise InvalidInput(
            "the two versions were not evaluated on the same cases",
            remedy="evaluate both: atlasloop models evaluate A B",
        )
    names = list(dict.fromkeys(row.organ for case, _ in pairs for row in case.organs))
    before, after = (summarise(cases) for cases in zip(*pairs, strict=True))
    result: dict[str, dict[str, Comparison]] = {}
    for figure in FIGURES:
        result[figure] = {name: signed_rank(*_paired(pairs, figure, name)) for name in names} | {
            "mean": replace(
                signed_rank(*_paired(pairs, figure, None)),
                difference=_difference(before.overall[figure], after.overall[figure]),
            )
        }
    return result


def _difference(before: Spread, after: Spread) -> float | None:
    return None if before.mean is None or after.mean is None else after.mean - before.mean


def _paired(
    pairs: Sequence[tuple[CaseAgreement, CaseAgreement]], figure: str, organ: str | None
) -> tuple[list[float], list[float]]:
    """Figures of both, of the cases where both have one; of organ None: means over organs."""
    first, second = [], []
    for one, other in pairs:
        a, b = _values([one], figure, organ), _values([other], figure, organ)
        if a and b:
            first.append(float(np.mean(a)))
            second.append(float(np.mean(b)))
    return first, second


def signed_rank(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """Wilcoxon's signed-rank test of paired figures, by SciPy; pairs that are equal count nothing.

    Raises:
        InvalidInput: of different lengths.
    """
    if len(first) != len(second):
        raise InvalidInput("pairs need two figures", expected=len(first), got=len(second))
    differences = np.asarray(second, float) - np.asarray(first, float)
    # Equal up to rounding: their signs would be noise.
    differences[np.abs(differences) < 1e-12] = 0.0
    mean = float(differences.mean()) if len(differences) else None
    if np.count_nonzero(differences) < 2:
        return Comparison(len(differences), mean, None)
    p_value = float(stats.wilcoxon(differences, zero_method="wilcox").pvalue)
    return Comparison(len(differences), mean, None if math.isnan(p_value) else p_value)


# --- output -------------------------------------------------------------------------------------


def as_json(summary: AgreementSummary) -> dict[str, Any]:
    """A summary as JSON values."""

    def row(spreads: Mapping[str, Spread]) -> dict[str, Any]:
        return {
            figure: {"mean": spread.mean, "std": spread.std, "cases": spread.count}
            for figure, spread in spreads.items()
        }

    return {
        "cases": summary.cases,
        "nsd_tolerance_mm": NSD_TOLERANCE_MM,
        "organs": {organ: row(spreads) for organ, spreads in summary.organs.items()},
        "overall": row(summary.overall),
    }


def as_csv(cases: Mapping[str, Sequence[CaseAgreement]]) -> str:
    """One line per model, case and organ: model, case_id, organ, dice, nsd; empty where None."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("model", "case_id", "organ", *FIGURES))
    for model, rows in cases.items():
        for case in rows:
            for row in case.organs:
                figures = ("" if v is None else f"{v:.6f}" for v in (row.dice, row.nsd))
                writer.writerow((model, case.case_id, row.organ, *figures))
    return out.getvalue()
