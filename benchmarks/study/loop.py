"""One loop of the study: one arm, one seed, some iterations. Killed at any moment, it goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from atlas_core.atomic_writes import replace_file
from atlas_core.geometry import Float3
from atlas_core.phantoms import Kind
from atlas_core.records import RankBy
from atlas_models.config import TrainingConfig, read_config
from atlas_models.training import TrainingCase
from numpy.typing import NDArray
from study.annotator import (
    Revised,
    assembled,
    attended_regions,
    revise_case,
    revise_region,
    weights_of,
)
from study.cases import LABELS, CasePlan, StudyCase, mean_dice, study_cases
from study.models import Ensemble, Scored, Weights, trained


class Arm(StrEnum):
    """How the cases are chosen that an annotator revises."""

    DISAGREEMENT = "disagreement"
    SIZE = "size"
    RELATIVE = "relative"
    RANDOM = "random"
    ORACLE = "oracle"
    """The largest true errors first."""
    PSEUDO_ONLY = "pseudo_only"
    """Nobody revises anything; the models learn from their own labels."""
    STEPS_ONLY = "steps_only"
    """Nobody revises anything; M0's own cases are shown for as many steps more."""
    REGIONS = "regions"
    """Attended regions of the cases that `disagreement` would choose, in its minutes."""
    RANDOM_FOREGROUND = "random_foreground"
    """Boxes around random voxels of what the models call an organ, in any case, in the same
    minutes: random with foreground, as nnActive has it."""


IN_PARTS = (Arm.REGIONS, Arm.RANDOM_FOREGROUND)
UNREVISED = (Arm.PSEUDO_ONLY, Arm.STEPS_ONLY)

FOREGROUND_SHARE = 0.66
"""Of the boxes of `random_foreground`; the others lie anywhere."""

BOX_MM = 72.0


SMALLER: Mapping[str, Any] = {
    "channels": (16, 32, 64, 128), "foreground_share": 0.0, "short_share": 0.0,
}  # fmt: skip
"""Than the demo U-Net, on a coarser grid."""


@dataclass(frozen=True)
class StudyPlan:
    """Everything that a study depends on.

    Attributes:
        spacing_mm, patch: of the networks, along x, y, z.
        networks: name → what is other than in the demo U-Net's configuration.
        taught, pool, held_out: ordinary phantoms that M0 learns from, that are annotated, and
            that models are judged by.
        hidden: kinds in the pool that M0 has never seen, one case each.
        held_out_hidden: the same among those that models are judged by.
        first_steps, first_rate: of the training of M0.
        steps, rate: of every fine-tuning.
        pseudo: how much a pseudo label counts.
        rehearsal: of M0's own cases, how many are shown in fine-tuning, too.
        revisions: cases per iteration.
        iterations: of the loop.
        columns: voxels across the phantoms that are drawn: 3.7 mm, finer than what models see.
    """

    spacing_mm: Float3 = (9.0, 9.0, 9.0)
    patch: tuple[int, int, int] = (48, 32, 48)
    networks: Mapping[str, Mapping[str, Any]] = field(
        default_factory=lambda: {
            "one": {"name": "one", "seed": 1},
            "two": {"name": "two", "seed": 2, "residual_units": 0},
        }
    )
    taught: int = 24
    pool: int = 24
    hidden: tuple[Kind, ...] = (Kind.CHILD,) * 6
    held_out: int = 6
    held_out_hidden: tuple[Kind, ...] = (Kind.CHILD,) * 6
    first_steps: int = 350
    first_rate: float = 4.0e-3
    steps: int = 60
    rate: float = 2.0e-3
    pseudo: float = 0.1
    rehearsal: int = 0
    revisions: int = 4
    iterations: int = 3
    columns: int = 96

    @property
    def key(self) -> str:
        """Tells the files of plans apart."""
        text = json.dumps(asdict(self), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def config(self, name: str, **fields: Any) -> TrainingConfig:
        """Of one network."""
        grid = {"spacing_mm": self.spacing_mm, "patch": self.patch}
        return read_config("demo/unet", {**SMALLER, **grid, **self.networks[name], **fields})


@dataclass(frozen=True)
class World:
    """The cases of one seed, M0, and what M0 makes of the pool."""

    plan: StudyPlan
    seed: int
    folder: Path
    taught: Sequence[TrainingCase]
    pool: Sequence[StudyCase]
    held_out: Sequence[StudyCase]
    first: Mapping[str, Weights]
    scored: Mapping[str, Scored]

    @cached_property
    def judged(self) -> dict[str, Any]:
        """The line of M0."""
        return _judged(self, self.first, self.scored, {}, {})

    @classmethod
    def of(cls, plan: StudyPlan, seed: int, folder: Path) -> World:
        """Drawn, trained and scored, or read from `folder`."""

        def drawn(number: int, ordinary: int, hidden: Sequence[Kind] = ()) -> list[StudyCase]:
            cases = CasePlan(
                10 * seed + number, ordinary, tuple(hidden), plan.columns, plan.spacing_mm
            )
            return study_cases(cases, folder / "cases")

        whole = dict.fromkeys(LABELS, 1.0)
        taught = [case.training_case(case.truth, whole) for case in drawn(0, plan.taught)]
        pool = drawn(1, plan.pool, plan.hidden)
        held_out = drawn(2, plan.held_out, plan.held_out_hidden)
        asked = replace(plan, steps=0, rate=0, pseudo=0, rehearsal=0, revisions=0, iterations=0)
        first = {}
        for name in plan.networks:
            config = plan.config(name, steps=plan.first_steps, learning_rate=plan.first_rate)
            path = folder / f"M0-{asked.key}-{seed}" / f"{name}.pt"
            first[name] = trained(config, taught, path)
        scored = Ensemble(_members(plan, first)).score_all(pool)
        return cls(plan, seed, folder, taught, pool, held_out, first, scored)


def _members(
    plan: StudyPlan, weights: Mapping[str, Weights]
) -> dict[str, tuple[TrainingConfig, Weights]]:
    return {name: (plan.config(name), weights[name]) for name in weights}


def run_arm(world: World, arm: Arm, minutes: Sequence[float] = ()) -> list[dict[str, Any]]:
    """One line per iteration, the first of M0; what is on disk is taken from there.

    Args:
        minutes: that an arm of regions has in each iteration.
    """
    plan = world.plan
    folder = world.folder / f"{plan.key}-{world.seed}-{arm.value}"
    files = [folder / f"{t}.json" for t in range(plan.iterations)]
    if all(file.is_file() for file in files):
        return [world.judged, *(json.loads(file.read_text()) for file in files)]
    people: dict[str, Revised] = {}
    weights, scored = world.first, world.scored
    lines = [world.judged]
    rng = np.random.default_rng([world.seed, 17])
    for t in range(plan.iterations):
        budget = minutes[t] if t < len(minutes) else np.inf
        people, done = _annotated(world, arm, scored, people, rng, float(budget))
        cases = _taught(world, arm, scored, people)
        weights = {
            name: trained(
                plan.config(name, **_tuning(world, t)), cases, folder / f"{t}" / f"{name}.pt",
                start=weights[name], data_key=f"{arm}{sorted(people)}",
            )
            for name in weights
        }  # fmt: skip
        scored = Ensemble(_members(plan, weights)).score_all(world.pool)
        if not files[t].is_file():
            judged = _judged(world, weights, scored, people, done)
            replace_file(files[t], json.dumps(judged).encode())
        lines.append(json.loads(files[t].read_text()))
    return lines


def _tuning(world: World, t: int) -> dict[str, Any]:
    plan = world.plan
    return {"steps": plan.steps, "learning_rate": plan.rate, "seed": 1000 * world.seed + t}


def _annotated(
    world: World, arm: Arm, scored: Mapping[str, Scored], people: Mapping[str, Revised],
    rng: np.random.Generator, minutes: float,
) -> tuple[dict[str, Revised], dict[str, Any]]:  # fmt: skip
    """What people have made of the cases after this iteration, and what was done in it."""
    after = dict(people)
    spent, cases = 0.0, list[str]()
    if arm in UNREVISED:
        return after, {"minutes": 0.0, "cases": [], "organs": 0}
    wanted = world.plan.revisions
    for case, regions in _asked(world, arm, scored, people, rng):
        if spent >= minutes or (arm not in IN_PARTS and len(cases) == wanted):
            break
        before = after.get(case.id, Revised())
        drawn = assembled(case, scored[case.id].label, before)
        if regions is None:
            after[case.id], cost = revise_case(case, drawn, before)
        else:
            cost = 0.5 if case.id not in cases else 0.0
            for organ, where in regions:
                after[case.id], more = revise_region(case, drawn, organ, where, before)
                before, cost = after[case.id], cost + more
                if spent + cost >= minutes:
                    break
        spent += cost
        cases += [case.id] * (case.id not in cases)
    organs = sum(len(one.masks) for one in after.values())
    return after, {"minutes": spent, "cases": cases, "organs": organs}


Regions = list[tuple[str, NDArray[np.bool_]]]


def _asked(
    world: World, arm: Arm, scored: Mapping[str, Scored], people: Mapping[str, Revised],
    rng: np.random.Generator,
) -> Iterator[tuple[StudyCase, Regions | None]]:  # fmt: skip
    """Cases in the order of an arm; with the regions to look at, or None: the whole case."""
    if arm is Arm.RANDOM_FOREGROUND:
        while True:
            case = world.pool[int(rng.integers(len(world.pool)))]
            yield case, _random_box(case, scored[case.id], rng)
    left = [case for case in world.pool if arm in IN_PARTS or case.id not in people]
    match arm:
        case Arm.RANDOM:
            order = rng.permutation(len(left)).astype(float)
        case Arm.ORACLE:
            order = np.array([mean_dice(scored[c.id].label, c.truth) for c in left])
        case _:
            by = RankBy.DISAGREEMENT if arm is Arm.REGIONS else RankBy(arm.value)
            order = np.array([-(scored[c.id].ranked.by(by) or 0.0) for c in left])
    for place in np.argsort(order, kind="stable"):
        case = left[int(place)]
        yield case, attended_regions(scored[case.id]) if arm is Arm.REGIONS else None


def _random_box(case: StudyCase, scored: Scored, rng: np.random.Generator) -> Regions:
    """All organs in one box."""
    inside = scored.label > 0 if rng.random() < FOREGROUND_SHARE else np.ones(case.ct.shape, bool)
    voxels = np.argwhere(inside)
    centre = voxels[int(rng.integers(len(voxels)))] if len(voxels) else np.array(case.ct.shape) // 2
    where = np.zeros(case.ct.shape, np.bool_)
    half = [round(BOX_MM / step / 2) for step in case.spacing_mm]
    box = tuple(slice(max(0, c - h), c + h + 1) for c, h in zip(centre, half, strict=True))
    where[box] = True
    present = [
        o for o, v in LABELS.items() if (((case.truth == v) | (scored.label == v))[box]).any()
    ]
    return [(organ, where) for organ in present]


def _taught(
    world: World, arm: Arm, scored: Mapping[str, Scored], people: Mapping[str, Revised]
) -> list[TrainingCase]:
    """What the models learn from."""
    if arm is Arm.STEPS_ONLY:
        return list(world.taught)
    cases = list(world.taught[: world.plan.rehearsal])
    for case in world.pool:
        made = people.get(case.id, Revised())
        labels = assembled(case, scored[case.id].label, made)
        cases.append(
            case.training_case(labels, weights_of(made, world.plan.pseudo), made.looked or None)
        )
    return cases


def _judged(
    world: World, weights: Mapping[str, Weights], scored: Mapping[str, Scored],
    people: Mapping[str, Revised], done: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Dice on held-out cases by group, and of the pool's labels."""
    ensemble = Ensemble(_members(world.plan, weights))
    found: dict[str, list[float]] = {}
    for case in world.held_out:
        found.setdefault(case.kind.value, []).append(
            mean_dice(ensemble.score(case).label, case.truth)
        )
    ordinary = found.pop(Kind.ORDINARY.value, [])
    hidden = [value for values in found.values() for value in values]
    labels = [
        mean_dice(
            assembled(case, scored[case.id].label, people.get(case.id, Revised())), case.truth
        )
        for case in world.pool
    ]
    return {
        "ordinary": float(np.mean(ordinary)) if ordinary else None,
        "hidden": float(np.mean(hidden)) if hidden else None,
        "by_kind": {kind: float(np.mean(values)) for kind, values in found.items()},
        "pool": float(np.mean(labels)),
        **done,
    }
