"""One arm of the loop demo: the flow `iterate` and the simulated annotator, in turns, on a stack of
its own, and what each turn was worth on held-out cases.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from atlas_core.atomic_writes import replace_file
from atlas_core.catalog import Catalog
from atlas_core.frozen_model import FrozenModel
from atlas_core.imaging import read_label
from atlas_core.loop import (
    Iterations,
    PriorityListName,
    cases_seen,
    record_step,
    review_outcome,
    steps_done,
    tasks_of,
)
from atlas_core.overlap import dice
from atlas_core.phantoms import Kind
from atlas_core.records import Iteration, IterationState, Reading
from atlas_core.review import Portion, RevisionQueue
from atlas_core.store import CaseStore
from atlas_embedded import stack
from atlas_embedded.components import review_token
from atlas_embedded.settings import EmbeddedSettings
from atlas_embedded.triton_models import repository_of
from rich.console import Console

from atlas_flows.assembly import AssemblyRequest
from atlas_flows.commands.assembly import run_assemble
from atlas_flows.commands.loop import run_iterate
from atlas_flows.commands.scoring import run_score
from atlas_flows.demos.demo_stack import signals_ignored, use_stack
from atlas_flows.demos.simulated_annotator import (
    ACCOUNT,
    AnnotatorPolicy,
    PhantomLabels,
    ReviewApi,
    annotate,
)
from atlas_flows.evaluation import (
    ORDINARY,
    EvaluationScope,
    PaperEvaluation,
    evaluate_all,
    kinds_of_cases,
    open_ground_truth,
)
from atlas_flows.loop import LoopParameters, Queued, StepKind
from atlas_flows.models import register_installed
from atlas_flows.scoring import ScoreRequest
from atlas_flows.settings import Places

WORK, HELD_OUT = "pool", "held-out"
"""Datasets: the one that is annotated, and the one that new versions are judged on."""

KNOWN = "known"
"""Phantoms that join the pool with their original labels."""

LIST, CONTROL = "disagreement", "random"
"""The arms: the top of the priority list is revised, or as many cases drawn by lot."""


@dataclass(frozen=True)
class LoopTuning:
    """Everything that was found by trying; see docs/explanation/evidence.md.

    Attributes:
        models: of the demo models. Not Swin UNETR, whose steps take three times as long.
        hidden: kinds in the pool that M0 does not know, in turn.
        pool, hidden_share: cases that are annotated, and the part of them that is hidden.
        known: cases such as M0 learnt from, with original labels, which it rehearses.
        held_out: cases that are judged on; half of them are of the hidden kinds.
        revisions: cases per iteration.
        iterations: of each arm.
        steps, learning_rate: of each fine-tuning.
        pseudo_weight: how much, and how often, pseudo labels count against revised ones.
        columns: voxels across a phantom.
    """

    models: tuple[str, ...] = ("unet", "nnunet")
    hidden: tuple[Kind, ...] = (Kind.CHILD, Kind.SITUS_INVERSUS)
    pool: int = 40
    hidden_share: float = 0.2
    known: int = 8
    held_out: int = 12
    revisions: int = 4
    iterations: int = 2
    steps: int = 100
    learning_rate: float = 2.0e-3
    pseudo_weight: float = 0.1
    columns: int = 96


FULL = LoopTuning()
QUICK = replace(FULL, pool=8, known=2, held_out=4, revisions=1, steps=2, columns=48)
"""Shows that everything runs; nothing is learnt in so few steps."""

MINUTES = 480.0
"""Of the simulated annotator, per iteration: more than it needs."""

WRONG_BELOW_DICE = 0.9
PATIENCE_S = 60.0
IN_FLIGHT = 2

LOTS: Final = 7
"""Seed of the control's choice, beside that of the phantoms."""


class Turn(FrozenModel):
    """What one iteration of an arm was worth; the first is M0's.

    Attributes:
        hidden, ordinary: mean Dice of the ensemble on held-out cases.
        by_kind: the same by kind of phantom.
        revised, confirmed: cases of the iteration.
        minutes: of the simulated annotator, as it recorded them.
    """

    hidden: float
    ordinary: float
    by_kind: dict[str, float]
    revised: int = 0
    confirmed: int = 0
    minutes: float = 0.0


@dataclass(frozen=True)
class ArmResult:
    """What became of an arm: its turns, and the paper's evaluation of its pool."""

    turns: tuple[Turn, ...]
    evaluation: PaperEvaluation


@dataclass
class DemoHome:
    """The demo's base, or one of its arms: a home with a stack of its own.

    Attributes:
        root: what all of them share: phantoms, and M0.
        seconds: step → what it took.
    """

    settings: EmbeddedSettings
    root: Path
    seed: int
    tuning: LoopTuning
    console: Console
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def places(self) -> Places:
        return Places.read(self.settings.home)

    @property
    def store(self) -> CaseStore:
        return CaseStore(self.settings.store)

    def phantoms(self, dataset: str) -> Path:
        return self.root / "phantoms" / dataset

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Times a step and prints it."""
        self.console.print(f"[bold]{name}[/bold]")
        started = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - started
        self.console.print(f"  {name}: {self.seconds[name]:.0f} s")

    @contextmanager
    def running(self) -> Iterator[Catalog]:
        """The stack of this home, and its catalog; stopped whatever happens."""
        use_stack(self.settings)
        with Catalog.open(self.settings.catalog_url) as catalog:
            try:
                stack.up(self.settings, on_event=lambda line: self.console.print(f"  {line}"))
                register_installed(repository_of(self.settings), self.settings.models_dir, catalog)
                yield catalog
            finally:
                with signals_ignored():
                    stack.down(self.settings)

    def score(self, dataset: str) -> None:
        """By the models in service, what they have not scored yet."""
        run_score(
            self.places, ScoreRequest(dataset=dataset), in_flight=IN_FLIGHT, patience_s=PATIENCE_S
        )


def judged(home: DemoHome, catalog: Catalog) -> Turn:
    """The newest ensemble on the held-out cases, which it has scored: mean Dice of the organs that
    a patient has, over the patients of a group."""
    ensemble = catalog.latest_ensemble(Reading.PAPER, HELD_OUT)
    assert ensemble is not None
    truth = PhantomLabels.of(home.phantoms(HELD_OUT))
    found: dict[str, list[float]] = {}
    for case_id, kind in kinds_of_cases(home.phantoms(HELD_OUT), catalog).items():
        true = truth.of_case(case_id)
        if true is None:
            continue
        path = home.store.pseudo_label_path(case_id, Reading.PAPER, ensemble)
        label = read_label(path).voxels
        overlaps = [dice(label == value, true == value) for value in np.unique(true[true > 0])]
        known = [overlap for overlap in overlaps if overlap is not None]
        found.setdefault(kind, []).append(float(np.mean(known)))
    hidden = [value for kind, values in found.items() if kind != ORDINARY for value in values]
    return Turn(
        hidden=round(float(np.mean(hidden)), 4),
        ordinary=round(float(np.mean(found[ORDINARY])), 4),
        by_kind={kind: round(float(np.mean(values)), 4) for kind, values in found.items()},
    )


def run_arm(home: DemoHome, arm: str, first: Turn) -> ArmResult:
    """All iterations of an arm; those that are done already are read.

    Args:
        first: M0's line.
    """
    files = [home.settings.home / f"turn-{t}.json" for t in range(home.tuning.iterations)]
    with home.running() as catalog:
        for t, file in enumerate(files):
            if not file.is_file():
                turn = _turn(home, catalog, arm, t)
                replace_file(file, turn.model_dump_json(indent=1).encode())
        with home.step(f"{arm}: labels by the last models"):
            home.score(WORK)
            run_assemble(home.places, AssemblyRequest(dataset=WORK), in_flight=IN_FLIGHT)
            truth = open_ground_truth(home.phantoms(WORK), catalog, home.store)
            evaluation = evaluate_all(catalog, home.store, truth, EvaluationScope(nsd=False))
    turns = (first, *(Turn.model_validate_json(file.read_bytes()) for file in files))
    return ArmResult(turns, evaluation)


def _turn(home: DemoHome, catalog: Catalog, arm: str, t: int) -> Turn:
    """One iteration: the flow and the simulated annotator in turns until it is closed."""
    given = _parameters(home.tuning)
    truth = PhantomLabels.of(home.phantoms(WORK))
    if arm == CONTROL and len(Iterations(catalog).all()) == t:
        home.score(WORK)
        parameters = LoopParameters.model_validate(given)
        pool = sorted(kinds_of_cases(home.phantoms(WORK), catalog))
        queue_by_lot(catalog, parameters, t, pool, home.tuning.revisions, home.seed)
    while not _closed(catalog, t):
        with home.step(f"{arm}, iteration {t}: flow, step {len(home.seconds) + 1}"):
            asked = given | {"mode": "run", "patience_s": PATIENCE_S}
            home.console.print(f"  {run_iterate(home.places, asked)}", markup=False)
        if _closed(catalog, t):
            break
        with home.step(f"{arm}, iteration {t}: simulated annotator"):
            token = review_token(home.settings, ACCOUNT)
            with ReviewApi.open(home.settings.review_url, token) as api:
                policy = AnnotatorPolicy(MINUTES, WRONG_BELOW_DICE, WORK)
                annotate(api, truth, policy, lambda line: home.console.print(f"  {line}"))
    with home.step(f"{arm}, iteration {t}: held-out cases"):
        home.score(HELD_OUT)
        turn = judged(home, catalog)
    work = review_outcome(catalog, _queued(catalog, t).tasks)
    done = {"revised": work.revised, "confirmed": work.confirmed}
    return turn.model_copy(update=done | {"minutes": round(work.seconds / 60, 1)})


def _parameters(tuning: LoopTuning) -> dict[str, Any]:
    """Of one iteration. Each is a loop of its own, so that the control can begin it its own way."""
    return {
        "dataset": WORK,
        "share": tuning.revisions / (tuning.pool + tuning.known),
        "steps": tuning.steps,
        "learning_rate": tuning.learning_rate,
        "pseudo_weight": tuning.pseudo_weight,
        "validation_dataset": HELD_OUT,
        "validation_share": 0.0,
        "iterations": 1,
        "in_flight": IN_FLIGHT,
    }


def _closed(catalog: Catalog, t: int) -> bool:
    known = Iterations(catalog).all()
    return len(known) > t and known[t].state is not IterationState.OPEN


def _queued(catalog: Catalog, t: int) -> Queued:
    return Queued.model_validate(steps_done(catalog, t)[StepKind.QUEUE.value])


def queue_by_lot(
    catalog: Catalog,
    parameters: LoopParameters,
    t: int,
    pool: Sequence[str],
    cases: int,
    seed: int,
) -> Iteration:
    """Begin iteration `t`, whose tasks are `cases` cases drawn by lot among those of `pool` that
    nobody has seen: the flow finds its queue filled. Stopped at any point, it opens the same tasks
    again.

    Args:
        parameters: of the loop; its dataset is scored.
        pool: ids of cases of that dataset, always in the same order.
    """
    dataset = parameters.dataset
    ensemble = catalog.latest_ensemble(Reading.PAPER, dataset)
    assert ensemble is not None
    name = PriorityListName(Reading.PAPER, ensemble, dataset)
    before = [task for earlier in range(t) for task in _queued(catalog, earlier).tasks]
    seen = cases_seen(catalog, name, before)
    left = [case for case in pool if case not in seen]
    lots = np.random.default_rng((seed, LOTS, t)).permutation(len(left))
    drawn = {left[place] for place in lots[:cases]}
    RevisionQueue(catalog).open_tasks(
        Portion(count=len(drawn)), CONTROL, ensemble=ensemble, dataset=dataset,
        without={case.id for case in catalog.cases(dataset)} - drawn,
    )  # fmt: skip
    queued = Queued(tasks=tasks_of(catalog, name, before), passed_over=len(seen))
    begun = Iterations(catalog).start(
        parameters.model_copy(update={"first": t}).model_dump(mode="json")
    )
    record_step(catalog, begun.t, StepKind.QUEUE.value, queued.model_dump(mode="json"))
    return begun
