"""Life cycle of models in the catalog: training labels, evaluations, promotions.

Functions over a `Catalog`, in a module of their own because scoring and review need none of them.
Rows are only added: a rollback is one more row, not an erased promotion.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from pydantic import Field

from atlas_core.catalog import tables as t
from atlas_core.catalog.catalog import Catalog
from atlas_core.catalog.database import insert_new
from atlas_core.frozen_model import FrozenModel
from atlas_core.model_spec import ModelName, ModelRef, Sha256
from atlas_core.organs import OrganName
from atlas_core.records import CaseId, Label, LabelSource, Model


class PromotionKind(StrEnum):
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    REMOVED = "removed"
    """The first version was taken back: no version serves any more."""


class Promotion(FrozenModel):
    """One change of the version in service."""

    model: ModelRef
    previous_version: int | None = Field(default=None, description="None: none was in service.")
    kind: PromotionKind
    forced: bool = Field(default=False, description="Against the result of the evaluation.")
    who: str = Field(description="Account that asked for it.")
    why: str = ""
    evidence: dict[str, float] = Field(
        default_factory=dict, description="Figures that decided, such as both mean Dice."
    )
    created_at: datetime


class OrganAgreement(FrozenModel):
    """Agreement of one organ of one case with the truth; None where both are empty."""

    organ: OrganName
    dice: float | None = Field(ge=0, le=1)
    nsd: float | None = Field(ge=0, le=1, description="Normalised surface Dice.")


class CaseAgreement(FrozenModel):
    """Agreement of one case with its truth."""

    case_id: CaseId
    organs: tuple[OrganAgreement, ...]


class Evaluation(FrozenModel):
    """Results of one version of a model on cases with truth."""

    model: ModelRef
    truth_sha256: Sha256 = Field(description="`truth_digest` of the labels it was compared with.")
    cases: tuple[CaseAgreement, ...] = Field(min_length=1)
    created_at: datetime


class TrainingLabel(FrozenModel):
    """One label that a model was trained on."""

    case_id: CaseId
    organ: OrganName
    label_sha256: Sha256
    source: LabelSource


def truth_digest(labels: Iterable[Label]) -> str:
    """SHA-256 of a set of labels, whatever their order: figures compare only on the same truth."""
    lines = sorted(f"{label.case_id} {label.organ} {label.sha256}" for label in labels)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def find_models(catalog: Catalog, name: str, version: int | None = None) -> list[Model]:
    """Registered versions of a model, oldest first; of one version, every graph it has had."""
    found = catalog.models(name)
    return [model for model in found if version is None or model.spec.version == version]


def record_promotion(catalog: Catalog, promotion: Promotion) -> None:
    """Record that the version in service changed."""
    row = promotion.model_dump(mode="json", exclude={"model"}) | promotion.model.model_dump()
    _add(catalog, t.promotions, [row | {"created_at": promotion.created_at}])


def promotions(catalog: Catalog, name: str | None = None) -> list[Promotion]:
    """All changes of the version in service, oldest first."""
    columns = t.promotions.c
    wanted = sa.true() if name is None else columns.name == name
    query = sa.select(t.promotions).where(wanted).order_by(columns.id)
    with catalog.transaction(write=False) as connection:
        return [
            Promotion.model_validate(_with_model(dict(row)))
            for row in connection.execute(query).mappings()
        ]


def record_evaluation(catalog: Catalog, evaluation: Evaluation) -> None:
    """Record the results of a version."""
    row = evaluation.model_dump(mode="json", exclude={"model"}) | evaluation.model.model_dump()
    _add(catalog, t.model_evaluations, [row | {"created_at": evaluation.created_at}])


def evaluations(catalog: Catalog, model: ModelRef) -> list[Evaluation]:
    """The results of a version, newest first."""
    columns = t.model_evaluations.c
    query = (
        sa.select(t.model_evaluations)
        .where(
            columns.name == model.name,
            columns.version == model.version,
            columns.sha256 == model.sha256,
        )
        .order_by(columns.id.desc())
    )
    with catalog.transaction(write=False) as connection:
        return [
            Evaluation.model_validate(_with_model(dict(row)))
            for row in connection.execute(query).mappings()
        ]


def record_training_labels(
    catalog: Catalog, model: ModelRef, labels: Iterable[TrainingLabel]
) -> int:
    """Record which labels a model was trained on; returns how many were new."""
    rows = [model.model_dump() | label.model_dump(mode="json") for label in labels]
    with catalog.transaction(write=True) as connection:
        return len(insert_new(connection, t.model_labels, rows))


def training_labels(catalog: Catalog, model: ModelRef) -> list[TrainingLabel]:
    """Labels that a model was trained on, by case and organ; empty where none were recorded."""
    columns = t.model_labels.c
    query = (
        sa.select(columns.case_id, columns.organ, columns.label_sha256, columns.source)
        .where(
            columns.name == model.name,
            columns.version == model.version,
            columns.sha256 == model.sha256,
        )
        .order_by(columns.case_id, columns.organ)
    )
    with catalog.transaction(write=False) as connection:
        return [
            TrainingLabel.model_validate(dict(row)) for row in connection.execute(query).mappings()
        ]


def now() -> datetime:
    """The current time in UTC, as records keep it."""
    return datetime.now(UTC)


def next_version(catalog: Catalog, name: ModelName, served: Iterable[int] = ()) -> int:
    """t of the next version of a model: one more than the highest known."""
    known = [model.spec.version for model in catalog.models(name)]
    return max([-1, *known, *served]) + 1


def _add(catalog: Catalog, table: sa.Table, rows: list[dict[str, Any]]) -> None:
    with catalog.transaction(write=True) as connection:
        connection.execute(sa.insert(table), rows)


def _with_model(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the three columns that name a model as one reference, without its id."""
    own = ("name", "version", "sha256")
    return {
        "model": {key: row[key] for key in own},
        **{key: value for key, value in row.items() if key not in (*own, "id")},
    }
