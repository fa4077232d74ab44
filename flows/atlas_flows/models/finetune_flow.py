"""Flow `finetune`: train the version in service further, export it, put it into service (step 7).

Runs where training is possible (work pool `gpu`). Killed at any point, the next run goes on: a
training from its last checkpoint, a promotion from its beginning.
"""

# No `from __future__ import annotations` here: Prefect resolves the flow's annotations outside of
# this module.

import time
from collections.abc import Callable
from typing import Annotated, Literal, cast
from uuid import UUID

from atlas_core.catalog import Catalog
from atlas_core.frozen_model import FrozenModel
from atlas_core.model_spec import ModelName
from atlas_core.records import DatasetName
from prefect import flow, get_run_logger, runtime
from prefect.artifacts import (
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.schemas.objects import State
from prefect.states import Failed
from pydantic import Field

from atlas_flows.models.dice_table import before_and_after
from atlas_flows.models.outcomes import REFUSED, Promoted, Trained
from atlas_flows.models.promotion import PromotionRequest
from atlas_flows.models.server import model_repository
from atlas_flows.models.version_finetuning import (
    FinetuningRequest,
    plan_versions,
    put_into_service,
    tune,
)
from atlas_flows.runs.events import Event, emit
from atlas_flows.settings import Places

PROGRESS_EVERY_S = 5.0
"""Time between two updates of the progress artifact: an update is a request to the server."""


class FinetuningSummary(FrozenModel):
    """The result of a fine-tuning; `promoted` is None where no promotion was asked for."""

    model: str
    trained: Trained
    promoted: Promoted | None = None


def _run_name() -> str:
    return str(runtime.flow_run.parameters["model"])


@flow(
    name="finetune",
    description="Trains the version in service of one model further on the labels of today, "
    "exports it, and puts it into service if it is no worse on cases that it has not learnt from.",
    flow_run_name=_run_name,
    persist_result=False,
)
def finetune(
    model: ModelName,
    dataset: DatasetName | None = None,
    steps: Annotated[int, Field(ge=1)] | None = None,
    learning_rate: Annotated[float, Field(gt=0)] | None = None,
    pseudo_weight: Annotated[float, Field(ge=0, le=1)] | None = None,
    validation_dataset: DatasetName | None = None,
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.1,
    labels: Literal["in_force", "assembled"] = "in_force",
    promote: bool = True,
    version: Annotated[int, Field(ge=1)] | None = None,
    parent: Annotated[int, Field(ge=0)] | None = None,
) -> FinetuningSummary | State[FinetuningSummary]:
    """Make the next version of a model. A training that diverges ends in the state
    `TrainingRefused`.

    Args:
        model: Name of a model in service.
        dataset: Learn from cases of this dataset. Empty: of all datasets.
        steps: Optimiser steps. Empty: as the version in service was trained.
        learning_rate: Its peak. Empty: as the version in service was trained.
        pseudo_weight: How much pseudo labels count; labels that people made count 1. Empty: as the
            version in service was trained.
        validation_dataset: Judge on the cases of this dataset. Empty: on every case with an
            original or revised label that the model has not learnt from.
        validation_share: Part of the cases that is kept out of training, by their ids.
        labels: assembled: the assembled maps, of cases that have one. in_force: the best label file
            of every organ.
        promote: Put the new version into service if it is no worse.
        version: Number of the new version; one that exists is taken as it is. Empty: the next.
        parent: Version that is trained further. Empty: the one in service.

    Raises:
        NotFound: the model is not in service, or has no weights.
    """
    places = Places.read()
    with Catalog.open(places.catalog_url) as catalog:
        plan = plan_versions(places, catalog, model_repository(places).models(), [model])
        tuning = FinetuningRequest(
            model=model,
            parent=plan.parents[model] if parent is None else parent,
            version=plan.versions[model] if version is None else version,
            dataset=dataset,
            steps=steps,
            learning_rate=learning_rate,
            pseudo_weight=pseudo_weight,
            validation_share=validation_share,
            labels=labels,
        )
        trained = train(tuning, places, catalog)
        if trained.refused:
            return Failed(
                name=REFUSED, message=f"the training of {model} failed: {trained.refused}"
            )
        promoted = None
        if promote:
            promoted = promote_version(model, tuning.version, places, catalog, validation_dataset)
    return FinetuningSummary(model=model, trained=trained, promoted=promoted)


def train(tuning: FinetuningRequest, places: Places, catalog: Catalog) -> Trained:
    """One training in a run of a flow: its progress is an artifact, a divergence an event."""
    get_run_logger().info("training %s@%d", tuning.model, tuning.version)
    trained = tune(tuning, places, catalog, _progress(tuning))
    if trained.refused:
        get_run_logger().error("%s: %s", tuning.model, trained.refused)
        emit(
            Event.TRAINING_REFUSED,
            subject=f"model.{tuning.model}",
            occasion=str(tuning.version),
            why=trained.refused,
        )
    return trained


def promote_version(
    model: str, version: int, places: Places, catalog: Catalog, validation_dataset: str | None
) -> Promoted:
    """One promotion in a run of a flow: the comparison is an artifact, a refusal an event."""
    log = get_run_logger()
    request = PromotionRequest(dataset=validation_dataset, why="fine-tuned by the loop")
    promoted = put_into_service(
        model, version, places, catalog, request=request, on_event=lambda line: log.info("%s", line)
    )
    if promoted.before is not None:
        rows = before_and_after(catalog, model, promoted.before, version)
        create_table_artifact(
            rows, key=f"dice-{_key(model)}", description=f"Dice of {model} before and after (%)"
        )
    if promoted.refused:
        log.warning("%s@%d stays in service: %s", model, promoted.before or 0, promoted.refused)
        emit(
            Event.PROMOTION_REFUSED,
            subject=f"model.{model}",
            occasion=str(version),
            why=promoted.refused,
        )
    return promoted


def _progress(tuning: FinetuningRequest) -> Callable[[int, int], None]:
    """Updates a progress artifact with the steps that are done, now and then."""
    created = create_progress_artifact(
        0.0,
        key=f"training-{_key(tuning.model)}",
        description=f"Training {tuning.model}@{tuning.version}",
    )
    artifact = cast(UUID, created)  # a coroutine only where the caller is one
    shown = time.monotonic()

    def show(step: int, steps: int) -> None:
        nonlocal shown
        if time.monotonic() - shown > PROGRESS_EVERY_S or step == steps:
            shown = time.monotonic()
            update_progress_artifact(artifact, progress=100.0 * step / steps)

    return show


def _key(model: str) -> str:
    # Keys of artifacts are lower-case letters, digits and dashes.
    return model.lower().replace("_", "-")
