"""The way back of the schema, on SQLite and on a real PostgreSQL: an earlier version finds its own
schema with its own rows, and nothing is lost without a word."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from atlas_core.catalog import Catalog, make_engine, tables
from atlas_core.errors import ConfigurationError, Conflict, NotFound
from typer.testing import CliRunner

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SHA = "a" * 64

BACK_TO = ("0013", "0014", "0015", "0016", "0017")
"""Every schema that there is a way back to."""


def rows() -> dict[str, list[dict[str, Any]]]:
    """What a catalog of the newest schema holds, in every table that the steps touch."""
    case = {
        "id": "lits_a", "dataset": "lits", "content_sha256": SHA, "shape": [1, 1, 1],
        "affine": [], "source": "a.nii.gz", "imported_at": NOW, "fingerprint": SHA,
    }  # fmt: skip
    task = {
        "id": 1, "case_id": "lits_a", "dataset": "lits", "reading": "paper", "ensemble": "unet@0",
        "rank": 1, "attention_ml": 12.5, "state": "open", "assignee": "ann", "created_at": NOW,
        "updated_at": NOW, "page": "window-1",
    }  # fmt: skip
    draft = {"task_id": 1, "author": "ann", "sha256": SHA, "base": {}}
    label = {
        "id": 1, "case_id": "lits_a", "organ": "liver", "source": "original", "path": "x",
        "value": 1, "sha256": SHA, "voxels": 3, "volume_ml": 0.5, "models": [], "created_at": NOW,
    }  # fmt: skip
    return {
        "datasets": [{"name": "lits", "title": "", "licence": "", "url": "", "organs": []}],
        "cases": [case],
        "labels": [label],
        "revision_tasks": [task],
        "revision_drafts": [
            {**draft, "page": page, "path": page, "saved_at": NOW + timedelta(minutes=minute)}
            for page, minute in (("window-1", 5), ("window-2", 9), ("window-3", 1))
        ],
        "revision_comments": [
            {"id": 1, "case_id": "lits_a", "author": "ann", "text": "a cyst", "created_at": NOW}
        ],
        "case_checks": [
            {
                "case_id": "lits_a", "part": "scan", "inputs_sha256": SHA, "found": 1,
                "warnings": [], "checked_at": NOW,
            }
        ],
        "case_uids": [{"case_id": "lits_a", "role": "series", "uid_sha256": SHA}],
        "transfers": [
            {
                "series": "s", "study": "t", "patient": "p", "dataset": "lits", "state": "done",
                "reason": "", "case_id": "lits_a", "pushed": [], "asked_at": NOW,
                "changed_at": NOW,
            }
        ],
    }  # fmt: skip


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/catalog.sqlite"
    address: str = request.getfixturevalue("postgresql_url")
    return address


@pytest.fixture
def filled(url: str) -> str:
    with Catalog.open(url) as catalog, catalog.transaction(write=True) as connection:
        for name, held in rows().items():
            connection.execute(sa.insert(tables.metadata.tables[name]), held)
    return url


def step_down(url: str, revision: str, *, accept_loss: bool = True) -> dict[str, int]:
    with Catalog.open(url, migrate=False) as catalog:
        return catalog.step_down(revision, accept_loss=accept_loss)


def reflected(url: str) -> sa.MetaData:
    """The schema as the database itself says it."""
    found = sa.MetaData()
    engine = make_engine(url)
    found.reflect(engine)
    engine.dispose()
    return found


def built(url: str, revision: str) -> None:
    """A new catalog as the version of that schema would have made it."""
    config = Config()
    config.set_main_option("script_location", "core/atlas_core/catalog/migrations")
    engine = make_engine(url)
    with engine.execution_options(atlas_write=True).connect() as connection, connection.begin():
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()


def differences(url: str, metadata: sa.MetaData) -> list[Any]:
    engine = make_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": tables.VERSION_TABLE, "compare_type": True}
        )
        found: list[Any] = compare_metadata(context, metadata)
    engine.dispose()
    return found


def selected(url: str, *names: str) -> list[sa.Row[Any]]:
    schema = reflected(url)
    engine = make_engine(url)
    with engine.connect() as connection:
        (name, *columns) = names
        table = schema.tables[name]
        found = connection.execute(sa.select(*(table.c[column] for column in columns))).all()
    engine.dispose()
    return list(found)


@pytest.mark.parametrize("revision", BACK_TO)
def test_the_earlier_version_finds_its_schema_and_its_rows(
    revision: str, filled: str, tmp_path: Path
) -> None:
    lost = step_down(filled, revision)
    fresh = f"sqlite:///{tmp_path}/fresh.sqlite"
    built(fresh, revision)
    assert shape(reflected(filled)) == shape(reflected(fresh))
    assert selected(filled, tables.VERSION_TABLE, "version_num") == [(revision,)]
    assert selected(filled, "cases", "id", "content_sha256") == [("lits_a", SHA)]
    assert selected(filled, "labels", "organ", "voxels") == [("liver", 3)]
    assert selected(filled, "revision_tasks", "assignee", "attention_ml") == [("ann", 12.5)]
    drafts = selected(filled, "revision_drafts", "author", "path")
    if revision < "0016":
        assert drafts == [("ann", "window-2")], "the draft that was saved last"
        assert lost["revision_drafts"] == 2
    else:
        assert len(drafts) == 3
    with Catalog.open(filled) as catalog:  # and up again
        assert [case.id for case in catalog.cases()] == ["lits_a"]
    assert differences(filled, tables.metadata) == []
    assert len(selected(filled, "revision_drafts", "path")) == len(drafts)


def shape(schema: sa.MetaData) -> dict[str, Any]:
    """What two databases of different kinds say alike of one schema."""
    return {
        name: (
            {column.name: column.nullable for column in table.columns},
            list(table.primary_key.columns.keys()),
            {index.name for index in table.indexes},
        )
        for name, table in schema.tables.items()
    }


def test_nothing_is_lost_without_a_word(filled: str) -> None:
    with pytest.raises(Conflict, match="1 rows of case_uids") as refused:
        step_down(filled, "0015", accept_loss=False)
    assert "2 rows of revision_drafts" in str(refused.value)
    with Catalog.open(filled, migrate=False):  # all is as it was
        assert len(selected(filled, "case_uids", "role")) == 1
    assert step_down(filled, "0015") == {
        "case_checks": 1, "case_uids": 1, "revision_comments": 1, "revision_drafts": 2,
    }  # fmt: skip


def test_an_empty_catalog_loses_nothing(url: str) -> None:
    Catalog.open(url).close()
    assert step_down(url, BACK_TO[0], accept_loss=False) == {}


def test_where_there_is_no_way_back_that_is_said(url: str) -> None:
    Catalog.open(url).close()
    with pytest.raises(ConfigurationError, match="restore its backup"):
        step_down(url, "0001")
    for none in ("9999", tables.REVISION):
        with pytest.raises(NotFound, match="no earlier schema"):
            step_down(url, none)
    with Catalog.open(url, migrate=False):
        pass


def test_the_newest_step_has_a_way_back() -> None:
    """A release is rolled back by it; see docs/how-to/operate.md."""
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", "core/atlas_core/catalog/migrations")
    steps = {one.revision: one for one in ScriptDirectory.from_config(config).walk_revisions()}
    newest = steps[tables.REVISION]
    assert hasattr(newest.module, "downgrade")
    assert set(BACK_TO) == {
        one.down_revision for one in steps.values() if hasattr(one.module, "downgrade")
    }


@pytest.fixture
def review_role(filled: str) -> Iterator[str]:
    if filled.startswith("sqlite"):
        pytest.skip("SQLite has no roles")
    engine = make_engine(filled)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE ROLE going_back"))
    yield "going_back"
    with engine.begin() as connection:
        connection.execute(sa.text("DROP OWNED BY going_back"))
        connection.execute(sa.text("DROP ROLE going_back"))
    engine.dispose()


def test_the_command_goes_back_and_review_keeps_its_rights(
    filled: str, review_role: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from atlas_flows.cli import app

    monkeypatch.setenv("ATLASLOOP_CATALOG_URL", filled)
    monkeypatch.setenv("ATLASLOOP_HOME", str(tmp_path))
    monkeypatch.setenv("ATLASLOOP_REVIEW_ROLE", review_role)
    runner = CliRunner()
    assert runner.invoke(app, ["migrate"]).exit_code == 0
    refused = runner.invoke(app, ["migrate", "--to", "0015"])
    assert refused.exit_code != 0
    went = runner.invoke(app, ["migrate", "--to", "0015", "--accept-loss"])
    assert went.exit_code == 0, went.output
    assert "1 rows of revision_comments" in " ".join(went.output.split())
    engine = make_engine(filled)
    with engine.connect() as connection:
        for table, verb in (("revision_drafts", "INSERT"), ("revision_tasks", "UPDATE")):
            query = sa.select(sa.func.has_table_privilege(review_role, table, verb))
            assert connection.scalar(query), (table, verb)
    engine.dispose()
