"""Life cycle of models in the catalog: what is recorded comes back, and nothing is erased."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from atlas_core.catalog import (
    CaseAgreement,
    Catalog,
    Evaluation,
    OrganAgreement,
    Promotion,
    PromotionKind,
    TrainingLabel,
    evaluations,
    next_version,
    now,
    promotions,
    record_evaluation,
    record_promotion,
    record_training_labels,
    training_labels,
    truth_digest,
)
from atlas_core.model_spec import ModelRef
from atlas_core.records import Label, LabelSource

REF = ModelRef(name="unet", version=1, sha256="a" * 64)
OTHER = ModelRef(name="unet", version=1, sha256="b" * 64)


@pytest.fixture(params=["sqlite", "postgresql"])
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Catalog]:
    url = (
        f"sqlite:///{tmp_path / 'catalog.sqlite'}"
        if request.param == "sqlite"
        else request.getfixturevalue("postgresql_url")
    )
    with Catalog.open(url) as opened:
        yield opened


def test_promotions_come_back_in_order(catalog: Catalog) -> None:
    done = [
        Promotion(
            model=REF, kind=PromotionKind.PROMOTED, who="a", why="better", forced=True,
            evidence={"mean_dice": 0.9}, created_at=now(),
        ),
        Promotion(
            model=OTHER, previous_version=1, kind=PromotionKind.ROLLED_BACK, who="b",
            created_at=now(),
        ),
    ]  # fmt: skip
    for promotion in done:
        record_promotion(catalog, promotion)
    assert promotions(catalog) == done
    assert promotions(catalog, "unet") == done
    assert promotions(catalog, "nnunet") == []


def test_evaluations_are_of_one_graph_newest_first(catalog: Catalog) -> None:
    rows = [OrganAgreement(organ="liver", dice=0.5, nsd=None)]
    known = []
    for truth in "01":
        known.append(
            Evaluation(
                model=REF,
                truth_sha256=truth * 64,
                cases=(CaseAgreement(case_id="c", organs=tuple(rows)),),
                created_at=now(),
            )
        )
        record_evaluation(catalog, known[-1])
    assert evaluations(catalog, REF) == known[::-1]
    assert evaluations(catalog, OTHER) == []


def test_training_labels_are_recorded_once(catalog: Catalog) -> None:
    labels = [
        TrainingLabel(case_id=f"c{n}", organ="liver", label_sha256=f"{n}" * 64, source="original")
        for n in range(3)
    ]
    assert record_training_labels(catalog, REF, labels) == 3
    assert record_training_labels(catalog, REF, labels[::-1]) == 0
    assert training_labels(catalog, REF) == labels
    assert training_labels(catalog, OTHER) == []


def test_a_version_number_is_never_reused(catalog: Catalog) -> None:
    assert next_version(catalog, "unet") == 0
    assert next_version(catalog, "unet", served=[4, 2]) == 5


def test_a_truth_is_named_by_its_labels_whatever_their_order() -> None:
    labels = [
        Label(
            case_id=f"c{n}", organ="liver", source=LabelSource.ORIGINAL, path="p", value=1,
            sha256=f"{n}" * 64, voxels=1, volume_ml=1, created_at=now(),
        )
        for n in range(3)
    ]  # fmt: skip
    assert truth_digest(labels) == truth_digest(labels[::-1])
    assert truth_digest(labels) != truth_digest(labels[1:])
