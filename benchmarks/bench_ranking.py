"""Which order of the priority list finds the errors, and whether attention does, on phantoms.

Phantoms are predicted by the demo models through the attention service's own pipeline, in this
process: what `atlasloop phantoms`, `score` and `evaluate ranking` give on a stack, without one.

    .venv/bin/python benchmarks/bench_ranking.py [--cases N] [--seed S] [--tail] [--hard SHARE]
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from atlas_core.phantoms import (
    HARD_KINDS,
    PHANTOM_ORGANS,
    TAIL_KINDS,
    Phantom,
    case_plan,
    make_phantom,
)
from atlas_core.ranking import CaseSizes, rank
from atlas_core.records import RankBy, Reading
from atlas_embedded.settings import EmbeddedSettings
from atlas_flows.evaluation.ranking_quality import CaseError, dice_by_organ, evaluate_ranking
from atlas_flows.evaluation.thick_errors import Scored, compare_with_border, thick_errors
from atlas_models.evaluation.phantom_evaluation import ArraySource, LocalPredictor, predict
from atlas_models.serving import exported_models
from bench.measurement import machine, report, say
from scipy.stats import spearmanr

LABELS = {organ.name: organ.label for organ in PHANTOM_ORGANS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--seed", type=int, default=4711)
    parser.add_argument("--hard", type=float, default=0.1, help="share of deliberately hard cases")
    parser.add_argument("--tail", action="store_true", help="hard cases of all kinds")
    parser.add_argument("--models", type=Path, default=EmbeddedSettings().models_dir)
    options = parser.parse_args()
    kinds = TAIL_KINDS if options.tail else HARD_KINDS
    errors: list[CaseError] = []
    counts: dict[Reading, list[Scored]] = {reading: [] for reading in Reading}
    wrong_ml: list[float] = []
    with (
        LocalPredictor(exported_models(options.models)) as predictor,
        contextlib.suppress(KeyboardInterrupt),  # what is done until then is reported
    ):
        for number in range(1, options.cases + 1):
            plan = case_plan(number, options.seed, options.hard, kinds)
            error, found, wrong = _measure(plan.name, make_phantom(plan.seed, plan.kind), predictor)
            errors.append(error)
            for reading, of_case in found.items():
                counts[reading] += of_case
            wrong_ml.append(wrong)
            say(f"{number} of {options.cases}: {plan.kind.value}, error {error.error:.3f}")
    result = evaluate_ranking(errors)
    sizes = [sum(organ.attention_ml for organ in case.ranked.organs) for case in errors]
    report(
        "ranking",
        cases=result.cases,
        mean_dice_ordinary=result.mean_dice_ordinary,
        mean_dice_difficult=result.mean_dice_difficult,
        hard_above=result.hard_above,
        absent_predicted=[result.absent_predicted, result.absent],
        orders=[order.model_dump(mode="json") for order in result.orders],
        spearman_of_wrong_ml={
            by.value: float(spearmanr([e.ranked.by(by) for e in errors], wrong_ml).statistic)
            for by in RankBy
        },
        thick_errors={
            reading.value: thick_errors(found).model_dump(mode="json")
            for reading, found in counts.items()
        },
        attention_ml=[min(sizes), max(sizes)],
        per_case=[
            {key: row[key] for key in ("case", "kind", "hard", "error", *(o.value for o in RankBy))}
            for row in result.per_case
        ],
        machine=machine(),
    )


def _measure(
    name: str, phantom: Phantom, predictor: LocalPredictor
) -> tuple[CaseError, dict[Reading, list[Scored]], float]:
    source = ArraySource(phantom.ct, phantom.geometry)
    predictor.clear_cache()  # each window is predicted once for all readings
    read = {
        reading: predict(source, predictor.specs, predictor, reading=reading, maps=True)
        for reading in Reading
    }
    found = read[Reading.PAPER]
    label = found.label
    truth = {organ: phantom.truth == LABELS[organ] for organ in found.attention}
    (ranked,) = rank([CaseSizes(name, "phantoms", found.organs)])
    error = CaseError(
        ranked=ranked,
        kind=phantom.kind.value,
        dice=dice_by_organ(label, truth, {organ: LABELS[organ] for organ in truth}),
        absent=frozenset(organ for organ, mask in truth.items() if not mask.any()),
    )
    wrong = sum(int(((label == LABELS[organ]) ^ mask).sum()) for organ, mask in truth.items())
    counts = {
        reading: list(_counts(label, truth, one.attention, phantom))
        for reading, one in read.items()
    }
    return error, counts, wrong * phantom.geometry.voxel_ml


def _counts(
    label: np.ndarray,
    truth: dict[str, np.ndarray],
    attention: Mapping[str, np.ndarray],
    phantom: Phantom,
) -> Iterator[Scored]:
    for organ, mask in truth.items():
        pseudo = label == LABELS[organ]
        yield compare_with_border(pseudo, mask, attention[organ], phantom.geometry.spacing_mm)


if __name__ == "__main__":
    main()
