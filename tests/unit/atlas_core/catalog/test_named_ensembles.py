"""Ensembles on record: one is in use, their history only grows, promotions show in all of them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from atlas_core.catalog import (
    Catalog,
    current_ensembles,
    described,
    ensemble_history,
    find_ensemble,
    record_ensemble,
    record_versions,
)
from atlas_core.ensembles import Ensemble, EnsembleState, Member, MemberRole
from atlas_core.errors import NotFound
from atlas_core.model_spec import ModelRef
from atlas_core.records import Case, Dataset, Reading, Score
from pydantic import ValidationError


def ref(name: str, version: int = 0) -> ModelRef:
    return ModelRef(name=name, version=version, sha256=f"{version}" * 64)


def ensemble(name: str, *models: str, **more: object) -> Ensemble:
    members = tuple(Member(model=ref(model)) for model in models)
    return Ensemble.model_validate({"name": name, "members": members, **more})


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(f"sqlite:///{tmp_path}/catalog.sqlite") as opened:
        yield opened


def record(catalog: Catalog, one: Ensemble, state: EnsembleState, action: str = "created") -> None:
    record_ensemble(catalog, one, state, action=action, who="ada", why="a test")


def test_one_ensemble_is_in_use_and_the_history_only_grows(catalog: Catalog) -> None:
    with pytest.raises(NotFound, match="no ensemble is in use"):
        find_ensemble(catalog)
    record(catalog, ensemble("one", "a"), EnsembleState.IN_USE)
    record(catalog, ensemble("two", "a", "b"), EnsembleState.IN_USE)
    assert {c.ensemble.name: c.state for c in current_ensembles(catalog)} == {
        "one": EnsembleState.IDLE, "two": EnsembleState.IN_USE,
    }  # fmt: skip
    assert find_ensemble(catalog).ensemble.name == "two"
    history = ensemble_history(catalog, "one")
    assert [(c.state.value, c.who, c.why) for c in history] == [
        ("in_use", "ada", "a test"), ("idle", "ada", "a test"),
    ]  # fmt: skip
    for change in ("UPDATE ensemble_changes SET who = 'eve'", "DELETE FROM ensemble_changes"):
        with pytest.raises(Exception, match="only grows"), catalog.transaction(write=True) as c:
            c.execute(sa.text(change))
    record(catalog, ensemble("one", "a"), EnsembleState.REMOVED)
    with pytest.raises(NotFound, match=r"no ensemble one.*two"):
        find_ensemble(catalog, "one")


def test_a_promotion_shows_in_every_ensemble_and_changes_nothing_that_is_said(
    catalog: Catalog,
) -> None:
    record(catalog, ensemble("one", "a", "b"), EnsembleState.LOADED)
    record(catalog, ensemble("two", "b"), EnsembleState.IN_USE)
    said = described(catalog)
    assert {name: one.in_use for name, one in said.items()} == {"one": False, "two": True}
    record_versions(catalog, [ref("b", 1)], action="promoted", who="ada")
    assert find_ensemble(catalog).ensemble.voices == (ref("b", 1),)
    assert find_ensemble(catalog, "one").ensemble.voices == (ref("a"), ref("b", 1))
    assert described(catalog) == said
    before = len(ensemble_history(catalog))
    record_versions(catalog, [ref("b", 1)], action="found in service", who="ada")
    assert len(ensemble_history(catalog)) == before


def test_nothing_is_said_of_what_nobody_made(catalog: Catalog) -> None:
    record(catalog, ensemble("default", "a"), EnsembleState.IN_USE, "found in service")
    record_versions(catalog, [ref("a", 1)], action="promoted", who="ada")
    assert described(catalog) == {}
    record(catalog, ensemble("mine", "a"), EnsembleState.IDLE)
    assert list(described(catalog)) == ["default"]


def test_a_result_is_of_members_and_fusion_grid() -> None:
    plain = ensemble("one", "a", "b")
    finer = ensemble("one", "a", "b", fusion_spacing_mm=(1.5, 1.5, 2.25))
    assert plain.key == "a@0-00000000+b@0-00000000"  # as results of before are stored
    assert finer.key == plain.key + "+grid-1.5-1.5-2.25"
    located = Ensemble(
        name="one", members=(*plain.members, Member(model=ref("scout"), role=MemberRole.LOCATOR))
    )
    assert located.key == plain.key


def test_the_list_is_of_the_ensemble_in_use_and_others_are_counted(catalog: Catalog) -> None:
    catalog.add_dataset(Dataset(name="d"))
    for number in range(3):
        catalog.add_case(
            Case(
                id=f"c{number}", dataset="d", content_sha256=f"{number:064x}", shape=(1, 1, 1),
                affine=((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)),
                imported_at=datetime.now(UTC),
            )
        )  # fmt: skip
    mine, other = ensemble("mine", "a"), ensemble("other", "a", "b")
    record(catalog, mine, EnsembleState.IN_USE)
    for case_id in ("c0", "c1", "c2"):
        score(catalog, case_id, other)
    # It has scored nothing yet: the last list there is, rather than none.
    assert catalog.latest_ensemble(Reading.PAPER) == other.key
    score(catalog, "c1", mine)
    score(catalog, "c2", other, number=2)  # later, and yet
    assert catalog.latest_ensemble(Reading.PAPER) == mine.key
    assert [case.case_id for case in catalog.ranking(Reading.PAPER)] == ["c1"]
    assert catalog.scored_otherwise(Reading.PAPER, mine.key) == 2
    assert catalog.scored_otherwise(Reading.PAPER, mine.key, "d") == 2
    assert catalog.scored_otherwise(Reading.PAPER, other.key) == 0


def score(catalog: Catalog, case_id: str, by: Ensemble, number: int = 1) -> None:
    catalog.record_score(
        Score(
            case_id=case_id, reading=Reading.PAPER, ensemble=by.key, models=by.voices, organs=(),
            number=number, seconds=1.0, created_at=datetime.now(UTC),
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("members", "more", "why"),
    [
        (("a", "a"), {}, "named twice"),
        ((), {}, "at least 1"),
        (("a",), {"fusion_spacing_mm": (0.0, 1.0, 1.0)}, "fusion grid"),
        (("a",), {"name": "No Name"}, "pattern"),
    ],
)
def test_what_is_no_ensemble(members: tuple[str, ...], more: dict[str, object], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Ensemble.model_validate(
            {"name": "one", "members": [{"model": ref(m)} for m in members], **more}
        )
