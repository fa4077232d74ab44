"""Flow `iterate`: the loop (steps 2 to 8), as far as it can go without people.

A run reads the status of the open iteration, does the steps that are left, and ends where people
are needed. The event atlasloop.queue.drained, a person or a deadline starts the next run. So no
process sleeps while annotators work, and a run may be killed at any point (decision 0032).
"""

# No `from __future__ import annotations` here: Prefect resolves the flow's annotations outside of
# this module.

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from atlas_core.catalog import Catalog
from atlas_core.ensembles import EnsembleName
from atlas_core.loop import Iterations, record_step, review_outcome, steps_done
from atlas_core.records import DatasetName, Iteration, IterationState, LabelSource, RankBy, Reading
from prefect import flow, get_run_logger, tags
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import Field

from atlas_flows.assembly.flow import assemble
from atlas_flows.loop import state_machine as loop
from atlas_flows.loop.revise_flow import revise
from atlas_flows.loop.state_machine import (
    Assembled,
    Begin,
    Ending,
    IterationStatus,
    LoopParameters,
    Mode,
    Scored,
    Step,
    StepKind,
    next_step,
)
from atlas_flows.loop.summary import (
    IterateSummary,
    dry_run_markdown,
    ranking_plots,
    summary_markdown,
)
from atlas_flows.loop.wake_up import wake_up_at
from atlas_flows.models import FinetuningRequest, Promoted, Trained, TrainingPlan, plan_versions
from atlas_flows.models.finetune_flow import promote_version, train
from atlas_flows.models.remote_training import train_elsewhere
from atlas_flows.runs import CasesFailed, ModelNames, OrganNames, Outcome, exclusive_run
from atlas_flows.runs.crashed_runs import mark_interrupted_runs, process_tag
from atlas_flows.runs.events import Event, emit
from atlas_flows.scoring import ScoreSummary
from atlas_flows.scoring.flow import score
from atlas_flows.settings import Places

WAITING = "WaitingForReview"
"""Name of the state in which a run ends that needs people."""


@flow(
    name="iterate",
    description="The loop: score every case, open revision tasks for the top of the priority list, "
    "wait for annotators, assemble labels, fine-tune the models, put them into service, and begin "
    "again, until annotators confirm the top of the list or the limit is reached. A run ends "
    "where people are needed; it is started again when the queue is drained. What is done is "
    "never done twice: after a crash, start it again.",
    flow_run_name="{mode}",
    persist_result=False,
)
def iterate(
    mode: Mode = Mode.RUN,
    dataset: DatasetName | None = None,
    reading: Reading = Reading.PAPER,
    by: RankBy = RankBy.DISAGREEMENT,
    share: Annotated[float, Field(gt=0, le=1)] | None = 0.05,
    minutes: Annotated[float, Field(ge=15)] | None = None,
    organs: OrganNames | None = None,
    models: ModelNames | None = None,
    steps: Annotated[int, Field(ge=1)] | None = None,
    learning_rate: Annotated[float, Field(gt=0)] | None = None,
    pseudo_weight: Annotated[float, Field(ge=0, le=1)] | None = None,
    validation_dataset: DatasetName | None = None,
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.1,
    stop_share: Annotated[float, Field(gt=0, le=1)] = 1.0,
    iterations: Annotated[int, Field(ge=1, le=100)] = 3,
    deadline_hours: Annotated[float, Field(gt=0)] | None = None,
    dry_run: bool = False,
    in_flight: Annotated[int, Field(ge=1, le=64)] = 2,
    patience_s: Annotated[float, Field(ge=0, le=86_400)] = 300.0,
    ensemble: EnsembleName | None = None,
) -> State[IterateSummary]:
    """Go on with the loop. While an iteration is open, the parameters it was begun with hold; then
    only mode, dry_run and patience_s count.

    Args:
        mode: run: begin, or go on where it stands. continue: go on, never begin. proceed: go on
            without waiting for cases that are not revised yet. restart: give up the open iteration
            and begin anew with these parameters.
        dataset: Work on this dataset. Empty: on all.
        reading: How predictions become attention. paper: Eq. 1–4 to the letter. released: the
            thresholds and openings of the paper's published code.
        by: What the priority list is sorted by. disagreement: how much the models' masks differ.
            size: attention size, the paper's. attended: volume of attention of at least 0.2.
            relative: attention against the organ's own volume.
        share: This part of the priority list is revised in each iteration; the paper took 0.05.
        minutes: Instead of a share: as many cases as fit into so many minutes of annotators' time
            per iteration, at 15 minutes a case.
        organs: Only these organs are revised. Empty: all.
        models: Models to fine-tune. Empty: all in service that have weights.
        steps: Optimiser steps per fine-tuning. Empty: as the version in service was trained.
        learning_rate: Peak of a fine-tuning. Empty: as the version in service was trained.
        pseudo_weight: How much pseudo labels count in a fine-tuning; labels that people made count
            1. Empty: as the version in service was trained.
        validation_dataset: Judge new versions on this dataset, which is not trained on. Empty: on
            cases with original or revised labels that the versions have not learnt from.
        validation_share: Part of the cases that is kept out of training, by their ids.
        stop_share: Stop when at least this part of the judged cases was confirmed without revision.
        iterations: Stop after so many.
        deadline_hours: Go on after so many hours, whatever is still in the queue. Empty: wait.
        dry_run: Only say what would be done.
        in_flight: Cases scored at the same time.
        patience_s: Seconds to wait for a service that does not answer before the run ends.
        ensemble: Name of one that is loaded. Empty: the one in use, whatever that is by then.

    Raises:
        AtlasError: what is missing, and what to do about it. Start the flow again afterwards: it
            goes on where it stood.
    """
    wanted = LoopParameters(
        dataset=dataset,
        reading=reading,
        by=by,
        share=share,
        minutes=minutes,
        organs=tuple(organs or ()),
        models=tuple(models or ()),
        steps=steps,
        learning_rate=learning_rate,
        pseudo_weight=pseudo_weight,
        validation_dataset=validation_dataset,
        validation_share=validation_share,
        stop_share=stop_share,
        iterations=iterations,
        deadline_hours=deadline_hours,
        in_flight=in_flight,
        ensemble=ensemble,
    )
    places = Places.read()
    with Catalog.open(places.catalog_url) as catalog:
        if dry_run:
            text = dry_run_markdown(catalog, wanted, mode)
            create_markdown_artifact(text, key="iteration-plan", description="What would be done")
            return Completed(name="DryRun", message=text.splitlines()[0])
        with exclusive_run(places.embedded.home / "iterate.lock", get_run_logger().info):
            # Subflows of a run that was killed would look as if they ran for ever.
            for part in (score, revise, assemble):
                mark_interrupted_runs(part.name)
            with tags(process_tag()):
                return _Loop(places, catalog, patience_s).run(wanted, mode)


class _Loop:
    """One run of the flow."""

    def __init__(self, places: Places, catalog: Catalog, patience_s: float) -> None:
        self._places = places
        self._catalog = catalog
        self._patience_s = patience_s
        self._log = get_run_logger()

    def run(self, wanted: LoopParameters, mode: Mode) -> State[IterateSummary]:
        opened = self._begin(wanted, mode)
        if opened is None:
            return Completed(name="NothingToDo", message="no iteration is open")
        while True:
            status = self._status(opened, mode)
            step = next_step(status)
            if step.kind is StepKind.WAIT:
                return self._wait(status)
            self._log.info("iteration %d: %s", opened.t, step.key)
            result = self._do(step, status)
            record_step(self._catalog, opened.t, step.key, result)
            if step.kind is StepKind.CLOSE:
                status = self._status(opened, mode)
                closed = self._close(status)
                if closed.ending is not Ending.NEXT:
                    return self._end(status, closed)
                opened = self._open(status.parameters)
                mode = Mode.CONTINUE  # proceeding was meant for the iteration that is over

    # Iterations

    def _begin(self, wanted: LoopParameters, mode: Mode) -> Iteration | None:
        known = Iterations(self._catalog).all()
        last = known[-1] if known else None
        closed = None if last is None else self._closed(last.t)
        match loop.beginning(last, closed, mode):
            case Begin.NOTHING:
                return None
            case Begin.GO_ON:
                return last
            case Begin.OPEN_NEXT:
                assert last is not None
                return self._open(LoopParameters.model_validate(last.parameters))
            case Begin.CLOSE_AND_OPEN_FIRST:
                assert last is not None
                Iterations(self._catalog).finish(last.t, IterationState.FAILED)
        return self._open(wanted.model_copy(update={"first": 0 if last is None else last.t + 1}))

    def _open(self, parameters: LoopParameters) -> Iteration:
        _ = parameters.portion  # refuses what cannot work before anything is done
        return Iterations(self._catalog).start(parameters.model_dump(mode="json"))

    def _closed(self, t: int) -> loop.Closed | None:
        found = steps_done(self._catalog, t).get(StepKind.CLOSE.value)
        return None if found is None else loop.Closed.model_validate(found)

    def _status(self, opened: Iteration, mode: Mode) -> IterationStatus:
        done = steps_done(self._catalog, opened.t)
        status = IterationStatus(opened.t, LoopParameters.model_validate(opened.parameters), done)
        if not status.has(StepKind.QUEUE):
            return status
        queued = status.queued
        late = queued.deadline is not None and datetime.now(UTC) >= queued.deadline
        return IterationStatus(
            opened.t,
            status.parameters,
            done,
            review=review_outcome(self._catalog, queued.tasks),
            stop_waiting=late or mode is Mode.PROCEED,
        )

    def _close(self, status: IterationStatus) -> loop.Closed:
        closed = loop.Closed.model_validate(status.done[StepKind.CLOSE.value])
        text = summary_markdown(status, self._places.review_url)
        create_markdown_artifact(
            text, key=f"iteration-{status.t}", description=f"Iteration {status.t}"
        )
        emit(
            Event.ITERATION_FINISHED,
            subject=f"iteration.{status.t}",
            occasion=closed.ending.value,
            why=closed.why,
        )
        Iterations(self._catalog).finish(status.t, closed.state)
        self._log.info("iteration %d ended: %s", status.t, closed.why)
        return closed

    def _end(self, status: IterationStatus, closed: loop.Closed) -> State[IterateSummary]:
        if closed.ending is Ending.NOTHING_TRAINED:
            raise loop.LoopFailed(
                f"iteration {status.t}: {closed.why}",
                remedy="start the flow again with a lower learning_rate or other models: it begins "
                "a new iteration on the labels of this one",
            )
        summary = IterateSummary.of(status, closed.ending.value, closed.why)
        return Completed(name="LoopFinished", message=closed.why, data=summary)

    # Waiting

    def _wait(self, status: IterationStatus) -> State[IterateSummary]:
        review = status.review
        done = review.revised + review.confirmed + review.skipped
        why = f"iteration {status.t}: {review.pending} cases wait for annotators, {done} are done"
        deadline = status.queued.deadline
        if deadline is not None:
            wake_up_at(deadline, status.t)
            why += f"; until {deadline:%Y-%m-%d %H:%M} UTC"
        link = f"{self._places.review_url}/#/queue"
        create_link_artifact(link, link_text="Review page", key="review-page", description=why)
        summary = IterateSummary.of(status, "waiting", why)
        return Completed(name=WAITING, message=f"{why} at {link}", data=summary)

    # Steps

    def _do(self, step: Step, status: IterationStatus) -> dict[str, Any]:
        match step.kind:
            case StepKind.SCORE:
                result: Any = self._score(status)
            case StepKind.QUEUE:
                result = self._queue(status)
            case StepKind.REVIEW:
                result = status.review
            case StepKind.ASSEMBLE:
                result = self._assemble(status)
            case StepKind.ORDER:
                result = self._plan(status)
            case StepKind.TRAIN:
                result = self._train(step.model or "", status)
            case StepKind.PROMOTE:
                result = self._promote(step.model or "", status)
            case _:
                result = loop.closing(status)
        dumped: dict[str, Any] = result.model_dump(mode="json")
        return dumped

    def _score(self, status: IterationStatus) -> Scored:
        given = status.parameters
        try:
            summary = score(
                dataset=given.dataset,
                reading=given.reading,
                in_flight=given.in_flight,
                patience_s=self._patience_s,
                ensemble=given.ensemble,
                shards=self._places.score_shards,
            )
        except CasesFailed as failed:
            summary = failed.summary
            if not _worth_going_on(summary):
                raise
            self._log.warning("%s; the loop goes on without them", failed)
        ranking = self._catalog.ranking(given.reading, summary.ensemble, given.dataset, given.by)
        if not ranking:
            raise loop.NothingToRank(
                "there is no case to rank",
                got=given.dataset or "an empty catalog",
                remedy="import cases: `atlasloop import FOLDER --dataset NAME`, then go on",
            )
        create_markdown_artifact(
            ranking_plots(ranking, given.by, given.portion.of(len(ranking))),
            key="attention-sizes",
            description=f"What cases are ranked by ({given.by.value}), by dataset (Fig. 4)",
        )
        scored = self._catalog.score(ranking[0].case_id, given.reading, summary.ensemble)
        models = () if scored is None else scored.models
        return Scored(
            ensemble=summary.ensemble,
            models=tuple(f"{model.name}@{model.version}" for model in models),
            cases=len(ranking),
            refused=tuple(case.case_id for case in summary.failures),
        )

    def _queue(self, status: IterationStatus) -> loop.Queued:
        given = status.parameters
        queued = revise(
            dataset=given.dataset,
            reading=given.reading,
            by=given.by,
            share=given.share,
            minutes=given.minutes,
            organs=list(given.organs),
            ensemble=status.scored.ensemble,
            before=self._earlier_tasks(status.t),
        )
        if given.deadline_hours is None or not queued.tasks:
            return queued
        deadline = datetime.now(UTC) + timedelta(hours=given.deadline_hours)
        return queued.model_copy(update={"deadline": deadline})

    def _earlier_tasks(self, t: int) -> list[int]:
        earlier = [done.t for done in Iterations(self._catalog).all() if done.t < t]
        records = [steps_done(self._catalog, one).get(StepKind.QUEUE.value) for one in earlier]
        return [task for record in records if record is not None for task in record["tasks"]]

    def _assemble(self, status: IterationStatus) -> Assembled:
        given = status.parameters
        try:
            summary = assemble(
                dataset=given.dataset,
                reading=given.reading,
                models=list(status.scored.models),
                in_flight=given.in_flight,
            )
        except CasesFailed as failed:
            summary = failed.summary
            if not summary.assembled and not summary.skipped:
                raise
            self._log.warning("%s; the loop goes on without them", failed)
        return Assembled(
            cases=summary.assembled + summary.skipped,
            failed=tuple(case.case_id for case in summary.failures),
            labels={
                source.value: sum(getattr(organ, source.value) for organ in summary.organs)
                for source in LabelSource
            },
        )

    def _plan(self, status: IterationStatus) -> TrainingPlan:
        served = [name.partition("@")[0] for name in status.scored.models]
        return plan_versions(self._places, self._catalog, served, status.parameters.models)

    def _train(self, model: str, status: IterationStatus) -> Trained:
        given, plan = status.parameters, status.plan
        tuning = FinetuningRequest(
            model=model,
            parent=plan.parents[model],
            version=plan.versions[model],
            dataset=given.dataset,
            steps=given.steps,
            learning_rate=given.learning_rate,
            pseudo_weight=given.pseudo_weight,
            validation_share=given.validation_share,
            labels="assembled",
        )
        deployment = self._places.training_deployment
        if deployment is None:
            return train(tuning, self._places, self._catalog)
        return train_elsewhere(tuning, deployment)

    def _promote(self, model: str, status: IterationStatus) -> Promoted:
        return promote_version(
            model,
            status.versions[model],
            self._places,
            self._catalog,
            status.parameters.validation_dataset,
        )


def _worth_going_on(summary: ScoreSummary) -> bool:
    """Cases that fail by their own fault must not stop the loop; an unavailable service does."""
    unavailable = any(case.outcome is Outcome.NOT_TRIED for case in summary.failures)
    return not unavailable and (
        summary.skipped > 0 or len(summary.failures) < len(summary.outcomes)
    )
