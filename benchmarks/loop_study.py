"""Does the choice of cases make the models better? Every way of choosing, several seeds, paired.

    make loop-study                                   # hours; interrupted, it goes on
    make loop-study ARGS='--seeds 2 --iterations 2 --arms disagreement random'

Everything on phantoms in this process: models learn from adults, the pool holds children among
adults, an annotator who knows the truth revises what an arm chooses, and the models are trained
further on the assembled labels. Arms of one seed share cases, M0 and its predictions.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from atlas_core.atomic_writes import replace_file
from bench.measurement import machine, report, say
from scipy import stats
from study.loop import IN_PARTS, Arm, StudyPlan, World, run_arm

Line = Mapping[str, Any]
Runs = Mapping[str, Mapping[int, Sequence[Line]]]
"""Arm → seed → line of M0 and of each iteration."""

FOLDER = Path(__file__).parent / ".cache" / "loop-study"

BASELINE = Arm.RANDOM

GROUPS = ("hidden", "ordinary")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--arms", nargs="+", type=Arm, choices=list(Arm), default=list(Arm))
    parser.add_argument("--folder", type=Path, default=FOLDER, help="what is done, and resumed")
    parser.add_argument("--output", type=Path, default=Path("loop-study"), help="JSON and picture")
    options = parser.parse_args()
    plan = replace(StudyPlan(), iterations=options.iterations)
    runs = study(plan, range(options.seeds), options.arms, options.folder)
    found = {
        "plan": json.loads(json.dumps(vars(plan), default=str)),
        "seeds": options.seeds,
        "arms": summary(runs),
        "machine": machine("torch", "monai", "numpy", "scipy"),
        "runs": {arm: dict(by_seed) for arm, by_seed in runs.items()},
    }
    replace_file(options.output / "study.json", (json.dumps(found, indent=1) + "\n").encode())
    draw(runs, options.output / "study.png")
    report("loop-study", **{key: found[key] for key in ("seeds", "arms", "machine")})


def study(plan: StudyPlan, seeds: Sequence[int], arms: Sequence[Arm], folder: Path) -> Runs:
    """Every arm of every seed; what is done already is read."""
    runs: dict[str, dict[int, Sequence[Line]]] = {arm.value: {} for arm in _ordered(arms)}
    for seed in seeds:
        world = World.of(plan, seed, folder)
        for arm in _ordered(arms):
            guide = runs.get(Arm.DISAGREEMENT.value, {}).get(seed, ())
            minutes = [line["minutes"] for line in guide[1:]] if arm in IN_PARTS else ()
            lines = run_arm(world, arm, minutes)
            runs[arm.value][seed] = lines
            dice = ", ".join(f"{line['hidden']:.3f}/{line['ordinary']:.3f}" for line in lines)
            say(f"seed {seed}, {arm.value}: hidden/ordinary {dice}")
    return runs


def _ordered(arms: Sequence[Arm]) -> list[Arm]:
    """With `disagreement` first where arms of regions take its minutes."""
    wanted = set(arms) | ({Arm.DISAGREEMENT} if set(arms) & set(IN_PARTS) else set())
    return [arm for arm in Arm if arm in wanted]


def aubc(dice: Sequence[float]) -> float:
    """Area under the budget curve: mean Dice over the iterations, M0 included, by trapezoids.

    >>> aubc([0.0, 1.0])
    0.5
    """
    values = np.asarray(dice, np.float64)
    return float((values[1:] + values[:-1]).mean() / 2) if len(values) > 1 else float(values[0])


def summary(runs: Runs) -> dict[str, dict[str, Any]]:
    """Of every arm: AUBC and final Dice by group, the pool's labels, minutes, and p against the
    baseline over the seeds that both have."""
    found = {}
    for arm, by_seed in runs.items():
        row: dict[str, Any] = {"seeds": len(by_seed)}
        for group in GROUPS:
            areas = {s: aubc([line[group] for line in lines]) for s, lines in by_seed.items()}
            row[f"aubc_{group}"] = round(float(np.mean(list(areas.values()))), 4)
            row[f"first_{group}"] = _mean(lines[0][group] for lines in by_seed.values())
            row[f"final_{group}"] = _mean(lines[-1][group] for lines in by_seed.values())
            row[f"final_{group}_by_seed"] = [round(v[-1][group], 4) for v in by_seed.values()]
            other = runs.get(BASELINE.value, {})
            if arm != BASELINE.value and other:
                row[f"against_random_{group}"] = against(
                    areas, {s: aubc([line[group] for line in other[s]]) for s in other}
                )
        row["pool"] = [
            _mean(v[t]["pool"] for v in by_seed.values()) for t in range(_turns(by_seed))
        ]
        row["minutes"] = _mean(sum(line.get("minutes", 0) for line in v) for v in by_seed.values())
        row["revised"] = _mean(
            sum(len(line.get("cases", ())) for line in v) for v in by_seed.values()
        )
        found[arm] = row
    return found


def against(one: Mapping[int, float], other: Mapping[int, float]) -> dict[str, Any]:
    """Paired over seeds: mean difference, Student's t and Wilcoxon's signed ranks.

    With five seeds no p of Wilcoxon's test is below 0.06, whatever the difference.
    """
    seeds = sorted(one.keys() & other.keys())
    a, b = (np.array([side[seed] for seed in seeds]) for side in (one, other))
    row: dict[str, Any] = {"difference": round(float((a - b).mean()), 4) if seeds else None}
    if len(seeds) > 1 and np.any(a != b):
        row["p_t"] = round(float(stats.ttest_rel(a, b).pvalue), 4)
        row["p_wilcoxon"] = round(float(stats.wilcoxon(a, b).pvalue), 4)
    return row


def _turns(by_seed: Mapping[int, Sequence[Line]]) -> int:
    return min((len(lines) for lines in by_seed.values()), default=0)


def _mean(values: Any) -> float | None:
    known = list(values)
    return round(float(np.mean(known)), 4) if known else None


def draw(runs: Runs, path: Path) -> None:
    """Held-out Dice by iteration: a curve of means and a line for each seed, by group."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(GROUPS), figsize=(12, 4.2), layout="constrained")
    for axis, group in zip(axes, GROUPS, strict=True):
        for number, (arm, by_seed) in enumerate(runs.items()):
            curves = np.array([[line[group] for line in lines] for lines in by_seed.values()])
            if not curves.size:
                continue
            axis.plot(curves.T, color=f"C{number}", alpha=0.25, linewidth=1)
            axis.plot(curves.mean(axis=0), color=f"C{number}", marker="o", label=arm)
        axis.set(title=f"held-out cases: {group}", xlabel="iteration", ylabel="mean Dice")
        axis.set_xticks(range(max(len(v) for b in runs.values() for v in b.values())))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
