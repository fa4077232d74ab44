"""The loop as a state machine: laws that hold for whatever happens to it."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

import pytest
from atlas_core.errors import InvalidInput
from atlas_core.loop import ReviewOutcome
from atlas_core.records import Iteration, IterationState
from atlas_flows.loop import IterationStatus, LoopParameters, next_step
from atlas_flows.loop.state_machine import (
    Begin,
    Closed,
    Ending,
    Mode,
    Queued,
    Scored,
    Step,
    StepKind,
    beginning,
    closing,
    stop_reason,
)
from atlas_flows.models import Promoted, Trained, TrainingPlan

MODELS = ("nnunet", "unet")


def test_an_undisturbed_iteration_goes_through_every_step_once() -> None:
    taken = played(review=ReviewOutcome(revised=3, confirmed=1))
    assert [step.key for step in taken] == [
        "score",
        "queue",
        "review",
        "assemble",
        "order",
        "train:nnunet",
        "promote:nnunet",
        "train:unet",
        "promote:unet",
        "close",
    ]


def test_it_waits_only_while_tasks_are_pending() -> None:
    done = {"score": scored(), "queue": queued()}
    waiting = IterationStatus(0, LoopParameters(), done, ReviewOutcome(revised=3, pending=1))
    assert next_step(waiting) == Step(StepKind.WAIT)
    drained = IterationStatus(0, LoopParameters(), done, ReviewOutcome(revised=4))
    assert next_step(drained) == Step(StepKind.REVIEW)
    stop_waiting = IterationStatus(0, LoopParameters(), done, waiting.review, stop_waiting=True)
    assert next_step(stop_waiting) == Step(StepKind.REVIEW)


def test_a_reviewed_iteration_does_not_wait_again() -> None:
    """A task may be opened again after the labels were assembled; the loop is past it."""
    done = {"score": scored(), "queue": queued(), "review": dumped(ReviewOutcome(revised=4))}
    status = IterationStatus(0, LoopParameters(), done, ReviewOutcome(revised=3, pending=1))
    assert next_step(status) == Step(StepKind.ASSEMBLE)


@pytest.mark.parametrize(
    ("review", "share", "ending"),
    [
        (ReviewOutcome(confirmed=4), 1.0, Ending.STOP_RULE),
        (ReviewOutcome(confirmed=3, revised=1), 1.0, None),
        (ReviewOutcome(confirmed=3, revised=1), 0.75, Ending.STOP_RULE),
        (ReviewOutcome(confirmed=2, skipped=2), 1.0, Ending.STOP_RULE),
        (ReviewOutcome(skipped=4), 0.01, None),
        (ReviewOutcome(gone=4), 0.01, None),
        (ReviewOutcome(pending=4), 0.01, None),
    ],
)
def test_the_stop_rule_looks_at_judged_cases(
    review: ReviewOutcome, share: float, ending: Ending | None
) -> None:
    done = {"score": scored(), "queue": queued(), "review": dumped(review)}
    assert stop_reason(IterationStatus(0, LoopParameters(stop_share=share), done)) is ending


def test_when_the_stop_rule_holds_labels_are_assembled_and_nothing_is_trained() -> None:
    taken = played(review=ReviewOutcome(confirmed=4))
    assert [step.key for step in taken] == ["score", "queue", "review", "assemble", "close"]


def test_an_empty_queue_ends_the_loop() -> None:
    taken, status = play(IterationStatus(0, LoopParameters(), {}), ReviewOutcome(), tasks=())
    assert [step.key for step in taken] == ["score", "queue", "review", "assemble", "close"]
    assert closing(status).ending is Ending.NOTHING_LEFT


def test_a_model_whose_training_failed_is_not_promoted_and_the_others_are() -> None:
    taken, status = play(
        IterationStatus(0, LoopParameters(), {}), ReviewOutcome(revised=4), diverged={"nnunet"}
    )
    keys = [step.key for step in taken]
    assert "promote:nnunet" not in keys
    assert "promote:unet" in keys
    assert closing(status).ending is Ending.NEXT
    assert "nnunet was not trained" in closing(status).why


def test_a_loop_without_any_trained_model_fails_and_says_why() -> None:
    _, status = play(
        IterationStatus(0, LoopParameters(), {}), ReviewOutcome(revised=4), diverged=set(MODELS)
    )
    closed = closing(status)
    assert closed.ending is Ending.NOTHING_TRAINED
    assert closed.state is IterationState.FAILED
    assert "no number" in closed.why


def test_a_refused_promotion_leaves_the_old_version_and_the_loop_goes_on() -> None:
    _, status = play(
        IterationStatus(0, LoopParameters(), {}), ReviewOutcome(revised=4), refused={"unet"}
    )
    closed = closing(status)
    assert closed.ending is Ending.NEXT
    assert "unet@1 was refused" in closed.why


@pytest.mark.parametrize(("first", "t", "ending"), [(0, 1, Ending.NEXT), (5, 7, Ending.LIMIT)])
def test_the_limit_counts_from_the_first_iteration_of_the_loop(
    first: int, t: int, ending: Ending
) -> None:
    parameters = LoopParameters(iterations=3, first=first)
    _, status = play(IterationStatus(t, parameters, {}), ReviewOutcome(revised=4))
    assert closing(status).ending is ending


def test_a_run_that_was_killed_anywhere_goes_on_with_the_step_that_was_not_recorded() -> None:
    """Whatever prefix of an iteration is recorded, the rest is what an undisturbed one does."""
    review = ReviewOutcome(revised=3, confirmed=1)
    whole, status = play(IterationStatus(0, LoopParameters(), {}), review)
    keys = [step.key for step in whole]
    for count in range(len(keys)):
        kept = {key: status.done[key] for key in keys[:count]}
        rest, _ = play(IterationStatus(0, LoopParameters(), kept, review), review)
        assert [step.key for step in rest] == keys[count:]


@pytest.mark.parametrize(
    ("state", "ending", "mode", "begin"),
    [
        (None, None, Mode.RUN, Begin.OPEN_FIRST),
        (None, None, Mode.CONTINUE, Begin.NOTHING),
        (None, None, Mode.PROCEED, Begin.NOTHING),
        ("open", None, Mode.RUN, Begin.GO_ON),
        ("open", None, Mode.CONTINUE, Begin.GO_ON),
        ("open", Ending.LIMIT, Mode.CONTINUE, Begin.GO_ON),
        ("open", None, Mode.RESTART, Begin.CLOSE_AND_OPEN_FIRST),
        ("done", Ending.NEXT, Mode.CONTINUE, Begin.OPEN_NEXT),
        ("done", Ending.NEXT, Mode.RUN, Begin.OPEN_NEXT),
        ("done", Ending.NEXT, Mode.RESTART, Begin.OPEN_FIRST),
        ("done", Ending.LIMIT, Mode.CONTINUE, Begin.NOTHING),
        ("done", Ending.STOP_RULE, Mode.RUN, Begin.OPEN_FIRST),
        ("failed", Ending.NOTHING_TRAINED, Mode.RUN, Begin.OPEN_FIRST),
        ("failed", None, Mode.PROCEED, Begin.NOTHING),
    ],
)
def test_what_a_run_begins_with(
    state: str | None, ending: Ending | None, mode: Mode, begin: Begin
) -> None:
    last = None
    if state is not None:
        last = Iteration(t=4, state=IterationState(state), started_at=datetime.now(UTC))
    closed = None if ending is None else Closed(ending=ending, why="")
    assert beginning(last, closed, mode) is begin


def test_minutes_that_are_not_enough_for_a_case_are_refused() -> None:
    assert LoopParameters(minutes=45).portion.of(100) == 3
    with pytest.raises(InvalidInput, match="at least 15"):
        _ = LoopParameters(minutes=14.9).portion


def played(review: ReviewOutcome) -> list[Step]:
    taken, _ = play(IterationStatus(0, LoopParameters(), {}), review)
    return taken


def play(
    status: IterationStatus,
    review: ReviewOutcome,
    *,
    tasks: tuple[int, ...] = (1, 2, 3, 4),
    diverged: Collection[str] = (),
    refused: Collection[str] = (),
) -> tuple[list[Step], IterationStatus]:
    """Steps until the iteration is closed, and where it stands then."""
    taken: list[Step] = []
    while not status.has(StepKind.CLOSE):
        step = next_step(status)
        taken.append(step)
        result = _result(step, status, review, tasks, diverged, refused)
        done = {**status.done, step.key: result}
        status = IterationStatus(status.t, status.parameters, done, review)
    return taken, status


def _result(
    step: Step,
    status: IterationStatus,
    review: ReviewOutcome,
    tasks: tuple[int, ...],
    diverged: Collection[str],
    refused: Collection[str],
) -> dict[str, Any]:
    match step.kind:
        case StepKind.SCORE:
            return scored()
        case StepKind.QUEUE:
            return dumped(Queued(tasks=tasks))
        case StepKind.REVIEW:
            return dumped(review)
        case StepKind.ORDER:
            return dumped(
                TrainingPlan(parents=dict.fromkeys(MODELS, 0), versions=dict.fromkeys(MODELS, 1))
            )
        case StepKind.TRAIN:
            bad = step.model in diverged
            return dumped(Trained(version=1, refused="the loss is no number" if bad else ""))
        case StepKind.PROMOTE:
            bad = step.model in refused
            return dumped(Promoted(version=1, before=0, refused="worse" if bad else ""))
        case StepKind.CLOSE:
            return dumped(closing(status))
        case _:
            return {"cases": 4}


def scored() -> dict[str, Any]:
    return dumped(Scored(ensemble="abc", models=("nnunet@0", "unet@0"), cases=80))


def queued() -> dict[str, Any]:
    return dumped(Queued(tasks=(1, 2, 3, 4)))


def dumped(value: Any) -> dict[str, Any]:
    result: dict[str, Any] = value.model_dump(mode="json")
    return result
