"""The loop as a state machine: what an iteration has done, and what comes next. Pure.

An iteration is a row of the catalog with a record per step that is done. A run of the flow
(`flow`, beside this) reads both, does the steps that are left, and ends where people are needed; so
a run may be killed at any point, any number of times.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from atlas_core.ensembles import EnsembleName
from atlas_core.errors import AtlasError, InvalidInput, NotFound
from atlas_core.frozen_model import FrozenModel
from atlas_core.loop import ReviewOutcome
from atlas_core.model_spec import ModelName
from atlas_core.organs import OrganName
from atlas_core.records import DatasetName, Iteration, IterationState, RankBy, Reading
from atlas_core.review import MINUTES_PER_CASE, TOP_SHARE, Portion
from pydantic import Field

from atlas_flows.models import Promoted, Trained, TrainingPlan


class NothingToRank(NotFound):
    """There is no case that the loop could work on."""


class LoopFailed(AtlasError):
    """An iteration ended without anything that the next one could begin with."""


class Mode(StrEnum):
    """What a run of the loop is asked to do."""

    RUN = "run"
    """Begin, or go on with the iteration that is open."""
    CONTINUE = "continue"
    """Go on with the iteration that is open; nothing if there is none (what automations ask)."""
    PROCEED = "proceed"
    """The same, without waiting for the cases that are not revised yet."""
    RESTART = "restart"
    """Close the open iteration as failed, and begin anew with the parameters of this run."""


class LoopParameters(FrozenModel):
    """What a loop works on, and when it ends; recorded with each of its iterations."""

    dataset: DatasetName | None = None
    reading: Reading = Reading.PAPER
    by: RankBy = RankBy.DISAGREEMENT
    ensemble: EnsembleName | None = Field(default=None, description="None: the one in use.")
    share: float | None = Field(default=TOP_SHARE, gt=0, le=1)
    minutes: float | None = Field(default=None, gt=0)
    organs: tuple[OrganName, ...] = ()
    models: tuple[ModelName, ...] = Field(default=(), description="Empty: all in service.")
    steps: int | None = Field(default=None, ge=1)
    learning_rate: float | None = Field(default=None, gt=0)
    pseudo_weight: float | None = Field(default=None, ge=0, le=1)
    validation_dataset: DatasetName | None = None
    validation_share: float = Field(default=0.1, ge=0, lt=1)
    stop_share: float = Field(default=1.0, gt=0, le=1)
    iterations: int = Field(default=3, ge=1)
    deadline_hours: float | None = Field(default=None, gt=0)
    in_flight: int = Field(default=2, ge=1, description="Cases that are scored at once.")
    first: int = Field(default=0, ge=0, description="t of the first iteration of this loop.")

    @property
    def portion(self) -> Portion:
        """How much of the priority list is revised.

        Raises:
            InvalidInput: less time than one case takes.
        """
        if self.minutes is None:
            return Portion(share=self.share or TOP_SHARE)
        if self.minutes < MINUTES_PER_CASE:
            raise InvalidInput(
                "the minutes are not enough for one case",
                expected=f"at least {MINUTES_PER_CASE}",
                got=self.minutes,
            )
        return Portion(minutes=self.minutes)


class StepKind(StrEnum):
    """The steps of an iteration, in the paper's order (§3.2 ②–⑧)."""

    SCORE = "score"
    QUEUE = "queue"
    WAIT = "wait"
    """For annotators. Never recorded: the run ends here, and a later one checks again."""
    REVIEW = "review"
    """The annotators' work is counted; from here on the iteration no longer waits for them."""
    ASSEMBLE = "assemble"
    ORDER = "order"
    """The versions to train are recorded before the first training: none is trained twice."""
    TRAIN = "train"
    PROMOTE = "promote"
    CLOSE = "close"


@dataclass(frozen=True)
class Step:
    """A step; of `TRAIN` and `PROMOTE` there is one for each model."""

    kind: StepKind
    model: str | None = None

    @property
    def key(self) -> str:
        """Its name in the catalog."""
        return self.kind.value if self.model is None else f"{self.kind.value}:{self.model}"


class Scored(FrozenModel):
    """Every case has attention maps and pseudo labels of one ensemble."""

    ensemble: str
    models: tuple[str, ...] = Field(description="NAME@T of each of it.")
    cases: int
    refused: tuple[str, ...] = Field(default=(), description="Cases that could not be scored.")


class Queued(FrozenModel):
    """The tasks of this iteration."""

    tasks: tuple[int, ...]
    passed_over: int = Field(default=0, description="Cases that annotators have seen before.")
    deadline: datetime | None = Field(
        default=None, description="Annotators are awaited until then."
    )


class Assembled(FrozenModel):
    """One label per case and organ."""

    cases: int
    failed: tuple[str, ...] = ()
    labels: dict[str, int] = Field(default_factory=dict, description="By source.")


class Ending(StrEnum):
    """Why a loop goes on, or not."""

    NEXT = "next"
    STOP_RULE = "stop_rule"
    NOTHING_LEFT = "nothing_left"
    LIMIT = "limit"
    NOTHING_TRAINED = "nothing_trained"


class Closed(FrozenModel):
    """How an iteration ended."""

    ending: Ending
    why: str

    @property
    def state(self) -> IterationState:
        failed = self.ending is Ending.NOTHING_TRAINED
        return IterationState.FAILED if failed else IterationState.DONE


@dataclass(frozen=True)
class IterationStatus:
    """Where an iteration stands.

    Attributes:
        done: step → what came of it, as recorded.
        review: what became of its tasks until now.
        stop_waiting: do not wait for annotators any longer (asked for, or past the deadline).
    """

    t: int
    parameters: LoopParameters
    done: Mapping[str, Mapping[str, Any]]
    review: ReviewOutcome = field(default_factory=ReviewOutcome)
    stop_waiting: bool = False

    def has(self, kind: StepKind, model: str | None = None) -> bool:
        return Step(kind, model).key in self.done

    @property
    def scored(self) -> Scored:
        return Scored.model_validate(self.done[StepKind.SCORE.value])

    @property
    def queued(self) -> Queued:
        return Queued.model_validate(self.done[StepKind.QUEUE.value])

    @property
    def reviewed(self) -> ReviewOutcome:
        return ReviewOutcome.model_validate(self.done[StepKind.REVIEW.value])

    @property
    def assembled(self) -> Assembled:
        return Assembled.model_validate(self.done[StepKind.ASSEMBLE.value])

    @property
    def plan(self) -> TrainingPlan:
        """What is trained; nothing before that is decided."""
        found = self.done.get(StepKind.ORDER.value, {"parents": {}, "versions": {}})
        return TrainingPlan.model_validate(found)

    @property
    def versions(self) -> dict[str, int]:
        """Version that is trained, by model."""
        return self.plan.versions

    def trained(self, model: str) -> Trained:
        return Trained.model_validate(self.done[Step(StepKind.TRAIN, model).key])

    def promoted(self, model: str) -> Promoted | None:
        found = self.done.get(Step(StepKind.PROMOTE, model).key)
        return None if found is None else Promoted.model_validate(found)


def next_step(status: IterationStatus) -> Step:
    """The first step that is left: `WAIT` while annotators work, `CLOSE` when all is done."""
    for kind in (StepKind.SCORE, StepKind.QUEUE):
        if not status.has(kind):
            return Step(kind)
    if not status.has(StepKind.REVIEW):
        waits = status.review.pending > 0 and not status.stop_waiting
        return Step(StepKind.WAIT if waits else StepKind.REVIEW)
    if not status.has(StepKind.ASSEMBLE):
        return Step(StepKind.ASSEMBLE)
    return Step(StepKind.CLOSE) if stop_reason(status) else _next_model(status)


def _next_model(status: IterationStatus) -> Step:
    if not status.has(StepKind.ORDER):
        return Step(StepKind.ORDER)
    for model in status.versions:
        if not status.has(StepKind.TRAIN, model):
            return Step(StepKind.TRAIN, model)
        if not status.trained(model).refused and not status.has(StepKind.PROMOTE, model):
            return Step(StepKind.PROMOTE, model)
    return Step(StepKind.CLOSE)


def stop_reason(status: IterationStatus) -> Ending | None:
    """Why the loop stops after the annotators' verdicts; None if it goes on training.

    The stop rule (§3.2 ⑧) looks at the cases that were judged. Cases that were skipped, or not
    looked at yet, do not count; if none was judged, the rule does not hold.
    """
    if not status.queued.tasks:
        return Ending.NOTHING_LEFT
    review = status.reviewed
    judged = review.revised + review.confirmed
    if judged and review.confirmed_share >= status.parameters.stop_share:
        return Ending.STOP_RULE
    return None


def closing(status: IterationStatus) -> Closed:
    """How an iteration ends whose steps are done."""
    ending = stop_reason(status)
    review = status.reviewed
    if ending is Ending.NOTHING_LEFT:
        return Closed(ending=ending, why="annotators have seen every case of the list")
    if ending is Ending.STOP_RULE:
        judged = review.revised + review.confirmed
        why = f"{review.confirmed} of the {judged} cases at the top needed no revision"
        return Closed(ending=ending, why=why)
    refused = [model for model in status.versions if status.trained(model).refused]
    if len(refused) == len(status.versions):
        why = "no model could be trained: " + "; ".join(
            f"{model}: {status.trained(model).refused}" for model in refused
        )
        return Closed(ending=Ending.NOTHING_TRAINED, why=why)
    done = status.t - status.parameters.first + 1
    if done >= status.parameters.iterations:
        return Closed(ending=Ending.LIMIT, why=f"the limit of {done} iterations is reached")
    return Closed(ending=Ending.NEXT, why=promotions_line(status))


def promotions_line(status: IterationStatus) -> str:
    """Which models have a new version, and which do not, in one line."""
    words = []
    for model in status.versions:
        trained, promoted = status.trained(model), status.promoted(model)
        if trained.refused:
            words.append(f"{model} was not trained")
        elif promoted is None or promoted.refused:
            words.append(f"{model}@{trained.version} was refused, the version before stays")
        else:
            words.append(f"{model}@{promoted.version} is in service")
    return ", ".join(words)


class Begin(StrEnum):
    """What a run does first."""

    GO_ON = "go on"
    OPEN_NEXT = "open next"
    """The next iteration of the same loop; a run was killed between the two."""
    OPEN_FIRST = "open first"
    CLOSE_AND_OPEN_FIRST = "close and open first"
    NOTHING = "nothing"


def beginning(last: Iteration | None, closed: Closed | None, mode: Mode) -> Begin:
    """What a run does first, by the last iteration in the catalog.

    Args:
        closed: how that one ended; None if that is not recorded.
    """
    if last is not None and last.state is IterationState.OPEN:
        return Begin.CLOSE_AND_OPEN_FIRST if mode is Mode.RESTART else Begin.GO_ON
    unfinished = closed is not None and closed.ending is Ending.NEXT
    if unfinished and mode is not Mode.RESTART:
        return Begin.OPEN_NEXT
    return Begin.OPEN_FIRST if mode in (Mode.RUN, Mode.RESTART) else Begin.NOTHING
