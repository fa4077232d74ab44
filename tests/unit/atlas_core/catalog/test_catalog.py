"""Errors of the catalog for addresses and databases that cannot work. (Its laws, on SQLite and on
PostgreSQL, are in tests/integration/test_catalog_postgres.py.)"""

from __future__ import annotations

import secrets
import shutil
import socket
import sqlite3
import traceback
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from atlas_core.catalog import Catalog
from atlas_core.catalog.tables import REVISION, UtcDateTime
from atlas_core.errors import ConfigurationError, Unavailable
from atlas_core.records import Dataset
from sqlalchemy.dialects import postgresql, sqlite


@pytest.mark.parametrize(
    "url", ["", "nonsense", "mysql://host/db", "sqlite://", "sqlite:///:memory:"]
)
def test_addresses_that_cannot_work_are_refused(url: str) -> None:
    with pytest.raises(ConfigurationError):
        Catalog.open(url)


def test_an_unreachable_database_is_named_without_its_password() -> None:
    password = secrets.token_hex()  # in a variable: a traceback quotes the lines of this file
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        port = probe.getsockname()[1]
        with pytest.raises(Unavailable) as caught:
            Catalog.open(f"postgresql://atlas:{password}@127.0.0.1:{port}/atlas")
    assert f"127.0.0.1:{port}" in str(caught.value)
    assert password not in "".join(traceback.format_exception(caught.value))


def test_a_malformed_address_is_refused_without_its_password() -> None:
    password = secrets.token_hex()
    with pytest.raises(ConfigurationError) as caught:
        Catalog.open(f"postgresql://atlas:{password}@host:notaport/atlas")
    assert password not in "".join(traceback.format_exception(caught.value))


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("not a database, but long enough to have a header of sixteen bytes" * 9)
    before = file.read_bytes()
    with pytest.raises(ConfigurationError, match="not a catalog"):
        Catalog.open(f"sqlite:///{file}")
    assert file.read_bytes() == before


def test_a_folder_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        Catalog.open(f"sqlite:///{tmp_path}")


def test_sqlite_is_prepared_for_many_readers_and_one_writer(tmp_path: Path) -> None:
    file = tmp_path / "new" / "catalog.sqlite"
    with Catalog.open(f"sqlite:///{file}") as catalog:
        catalog.add_dataset(Dataset(name="lits"))
        with catalog.transaction(write=False) as connection:
            asked = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "foreign_keys", "synchronous", "busy_timeout")
            }
    assert asked == {
        "journal_mode": "wal", "foreign_keys": 1, "synchronous": 2, "busy_timeout": 30000
    }  # fmt: skip


def test_a_reader_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    with Catalog.open(f"sqlite:///{tmp_path}/catalog.sqlite") as catalog:
        catalog.add_dataset(Dataset(name="lits"))
        with catalog.transaction(write=True):
            assert [dataset.name for dataset in catalog.datasets()] == ["lits"]


def test_a_copy_of_the_file_is_a_catalog(tmp_path: Path) -> None:
    """An unclean shutdown leaves the write-ahead log; together with it the file is whole."""
    with Catalog.open(f"sqlite:///{tmp_path}/a/catalog.sqlite") as catalog:
        catalog.add_dataset(Dataset(name="lits"))
        shutil.copytree(tmp_path / "a", tmp_path / "b")
    with Catalog.open(f"sqlite:///{tmp_path}/b/catalog.sqlite") as copy:
        assert [dataset.name for dataset in copy.datasets()] == ["lits"]


def test_the_revision_of_the_code_is_the_newest_migration(tmp_path: Path) -> None:
    import atlas_core
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    migrations = Path(str(atlas_core.__file__)).parent / "catalog" / "migrations"
    config.set_main_option("script_location", str(migrations))
    assert ScriptDirectory.from_config(config).get_heads() == [REVISION]


def test_a_failed_migration_leaves_nothing(tmp_path: Path) -> None:
    """Half-made tables would be taken for somebody else's the next time."""
    file = tmp_path / "catalog.sqlite"
    with sqlite3.connect(file) as direct:
        direct.execute("CREATE VIEW iterations AS SELECT 1")  # the last table cannot be made
    direct.close()
    with pytest.raises(Exception, match="iterations"):
        Catalog.open(f"sqlite:///{file}")
    with sqlite3.connect(file) as direct:
        names = {name for (name,) in direct.execute("SELECT name FROM sqlite_master")}
    direct.close()
    assert names == {"iterations"}


def test_a_new_file_that_somebody_writes_to_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite itself does not wait where a file that is being written is to write ahead."""
    file = tmp_path / "catalog.sqlite"
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    waits = []

    def end_the_other(seconds: float) -> None:
        waits.append(seconds)
        other.rollback()

    monkeypatch.setattr("atlas_core.catalog.database.time.sleep", end_the_other)
    with Catalog.open(f"sqlite:///{file}") as catalog:
        assert catalog.datasets() == []
    assert len(waits) == 1
    assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    other.close()


@pytest.mark.parametrize("dialect", [sqlite.dialect(), postgresql.dialect()])
def test_instants_keep_their_moment(dialect: object) -> None:
    column = UtcDateTime()
    instant = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=timezone(timedelta(hours=2)))
    stored = column.process_bind_param(instant, dialect)  # type: ignore[arg-type]
    back = column.process_result_value(stored, dialect)  # type: ignore[arg-type]
    assert back == instant
    assert back is not None
    assert back.tzinfo is UTC
    with pytest.raises(ValueError, match="time zone"):
        column.process_bind_param(datetime(2026, 1, 2), dialect)  # type: ignore[arg-type]
