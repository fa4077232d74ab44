"""An iteration described for people: plots, tables and sentences. Read-only."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from itertools import groupby

from atlas_core.catalog import Catalog
from atlas_core.frozen_model import FrozenModel
from atlas_core.loop import Iterations, review_outcome, steps_done
from atlas_core.records import Iteration, RankBy, RankedCase
from atlas_core.review import MINUTES_PER_CASE

from atlas_flows.loop.state_machine import (
    Begin,
    Closed,
    IterationStatus,
    LoopParameters,
    Mode,
    StepKind,
    beginning,
    next_step,
)
from atlas_flows.reports import plot_distribution

PLOT_STYLE = (
    "<style>.plot{background:#fff;font:13px sans-serif}line{stroke:#d5dade}text{fill:#333}"
    ".cool{stroke:#4a7fb5}.hot{stroke:#d1495b}line.mark{stroke:#d1495b}text.mark{fill:#d1495b}"
    "</style>"
)
"""An image on its own cannot take the colours of a page."""


class IterateSummary(FrozenModel):
    """Where a run of the loop ended."""

    iteration: int
    ending: str
    why: str
    done: tuple[str, ...]

    @classmethod
    def of(cls, status: IterationStatus, ending: str, why: str) -> IterateSummary:
        return cls(iteration=status.t, ending=ending, why=why, done=tuple(status.done))


def iteration_status(catalog: Catalog, opened: Iteration) -> IterationStatus:
    """Where an iteration stands now."""
    done = steps_done(catalog, opened.t)
    status = IterationStatus(opened.t, LoopParameters.model_validate(opened.parameters), done)
    if not status.has(StepKind.QUEUE):
        return status
    review = review_outcome(catalog, status.queued.tasks)
    return IterationStatus(opened.t, status.parameters, done, review)


def ranking_plots(ranking: Sequence[RankedCase], by: RankBy, urgent: int) -> str:
    """Markdown with a plot of what the list is sorted by per dataset (as Fig. 4); `urgent` cases
    are marked."""
    top = {case.case_id for case in ranking[:urgent]}
    parts = []
    by_dataset = sorted(ranking, key=lambda case: (case.dataset, case.rank))
    for dataset, group in groupby(by_dataset, key=lambda case: case.dataset):
        cases = list(group)
        marked = sum(case.case_id in top for case in cases)
        values = [case.by(by) or 0.0 for case in cases]
        # The share is of the whole list and the loop's own, not always 5 % and not of this dataset.
        drawing = str(plot_distribution(values, marked, by, "top of the list"))
        drawing = drawing.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
        drawing = drawing.replace(">", f">{PLOT_STYLE}", 1)
        data = base64.b64encode(drawing.encode()).decode()
        parts.append(
            f"### {dataset}: {len(cases)} cases, {marked} at the top of the list\n\n"
            f"![{by.value} of every case, largest first](data:image/svg+xml;base64,{data})"
        )
    return "\n\n".join(parts)


def summary_markdown(status: IterationStatus, review_url: str) -> str:
    """What an iteration did, for its artifact."""
    lines = [f"## Iteration {status.t}", "", *_rows(status), "", f"[Review page]({review_url})"]
    closed = status.done.get(StepKind.CLOSE.value)
    if closed is not None:
        lines.insert(1, f"\n{Closed.model_validate(closed).why}.")
    return "\n".join(lines)


def _rows(status: IterationStatus) -> list[str]:
    rows = ["| step | what came of it |", "|---|---|"]
    if status.has(StepKind.SCORE):
        scored = status.scored
        words = f"{scored.cases} cases by {', '.join(scored.models)}"
        rows.append(f"| score | {words}{_without(scored.refused)} |")
    if status.has(StepKind.QUEUE):
        queued = status.queued
        rows.append(
            f"| queue | {len(queued.tasks)} cases, {queued.passed_over} seen before passed over |"
        )
    if status.has(StepKind.REVIEW):
        review = status.reviewed
        rows.append(
            f"| review | {review.revised} revised, {review.confirmed} confirmed, {review.skipped} "
            f"skipped, {review.pending} left, {review.gone} deleted; "
            f"{review.seconds / 60:.0f} minutes |"
        )
    if status.has(StepKind.ASSEMBLE):
        made = status.assembled
        words = ", ".join(f"{count} {source}" for source, count in made.labels.items())
        rows.append(f"| assemble | {made.cases} cases: {words}{_without(made.failed)} |")
    return rows + [f"| {model} | {_model_cell(status, model)} |" for model in status.versions]


def _model_cell(status: IterationStatus, model: str) -> str:
    if not status.has(StepKind.TRAIN, model):
        return "waits for its training"
    trained, promoted = status.trained(model), status.promoted(model)
    if trained.refused:
        return f"not trained: {_cell(trained.refused)}"
    if promoted is None:
        return f"version {trained.version} is trained"
    if promoted.refused:
        return f"version {promoted.before} stays: {_cell(promoted.refused)}"
    figures = promoted.evidence
    if "mean_dice_before" not in figures:
        return f"version {promoted.version} is in service"
    return (
        f"version {promoted.version} is in service: mean Dice "
        f"{100 * figures['mean_dice_before']:.1f} → {100 * figures['mean_dice']:.1f} %"
    )


def _without(cases: Sequence[str]) -> str:
    return f"; without {', '.join(cases)}" if cases else ""


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def dry_run_markdown(catalog: Catalog, wanted: LoopParameters, mode: Mode) -> str:
    """What a run would do now, without doing it."""
    known = Iterations(catalog).all()
    last = known[-1] if known else None
    begin = beginning(last, None if last is None else _closed(catalog, last), mode)
    if begin is Begin.NOTHING:
        return "Nothing: no iteration is open."
    if begin is Begin.GO_ON and last is not None:
        status = iteration_status(catalog, last)
        step = next_step(status)
        return f"Iteration {last.t} is open; next: {step.key}.\n\n" + "\n".join(_rows(status))
    if begin is Begin.OPEN_NEXT and last is not None:
        wanted = LoopParameters.model_validate(last.parameters)
    return _plan(catalog, wanted, 0 if last is None else last.t + 1)


def _plan(catalog: Catalog, wanted: LoopParameters, t: int) -> str:
    cases = catalog.cases(wanted.dataset)
    top = wanted.portion.of(len(cases))
    models = sorted({model.spec.name for model in catalog.models()})
    chosen = wanted.models or models
    return (
        f"Iteration {t} would begin, of at most {wanted.iterations}.\n\n"
        f"- score {len(cases)} cases, as far as the ensemble in service has not scored them\n"
        f"- open {top} of them for revision: about {top * MINUTES_PER_CASE} minutes of "
        f"annotators' time\n"
        f"- assemble the labels, and train {', '.join(chosen) or 'no model'} further"
    )


def _closed(catalog: Catalog, last: Iteration) -> Closed | None:
    found = steps_done(catalog, last.t).get(StepKind.CLOSE.value)
    return None if found is None else Closed.model_validate(found)


def summary_line(status: IterationStatus) -> str:
    """An iteration in one line."""
    closed = status.done.get(StepKind.CLOSE.value)
    if closed is not None:
        return Closed.model_validate(closed).why
    if not status.has(StepKind.QUEUE):
        return "cases are scored"
    review = status.review
    finished = review.revised + review.confirmed + review.skipped
    if not status.has(StepKind.REVIEW):
        return f"{review.pending} cases wait for annotators, {finished} are done"
    return f"{finished} cases were judged; labels are assembled and models trained"
