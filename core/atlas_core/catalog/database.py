"""The database under the catalog: its engine, the schema and its migrations, and transactions."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import InterfaceError, OperationalError

from atlas_core.catalog import tables as t
from atlas_core.errors import ConfigurationError

BUSY_TIMEOUT_S: Final = 30
"""How long a write waits for another one on SQLite. Writes take milliseconds; a wait this long
means that somebody holds the file open in a transaction."""


CONNECT_TIMEOUT_S: Final = 10


_MIGRATION_LOCK: Final = 0x61746C6173
"""Key of PostgreSQL's advisory lock around a migration ("atlas" in ASCII)."""


_alembic = threading.Lock()  # Alembic's `context` is one per process


def _engine(url: str) -> Engine:
    try:
        address = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):  # ValueError: a port that is no number
        raise ConfigurationError(
            "the catalog's address cannot be read",
            expected="sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE",
        ) from None
    backend = address.get_backend_name()
    if backend == "sqlite":
        return _sqlite_engine(address)
    if backend in ("postgresql", "postgres"):
        return _postgresql_engine(address)
    raise ConfigurationError(
        "the catalog lives in SQLite or PostgreSQL", expected="sqlite or postgresql", got=backend
    )


def _postgresql_engine(address: sa.URL) -> Engine:
    return sa.create_engine(
        address.set(drivername="postgresql+psycopg"),
        connect_args={"connect_timeout": CONNECT_TIMEOUT_S, "application_name": "atlasloop"},
        # A connection that the server or a firewall dropped is replaced, not handed out.
        pool_pre_ping=True,
    )


def _sqlite_engine(address: sa.URL) -> Engine:
    if address.database in (None, "", ":memory:"):
        raise ConfigurationError(
            "a catalog in memory is seen by one connection only",
            expected="sqlite:///FILE",
            got=str(address),
        )
    Path(str(address.database)).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(
        address.set(drivername="sqlite"), connect_args={"timeout": BUSY_TIMEOUT_S}
    )
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # The driver must not open transactions by itself: `_begin_sqlite` says which kind it is.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")
    # A committed row survives a power cut (the default for WAL in some builds is NORMAL).
    cursor.execute("PRAGMA synchronous = FULL")
    # Readers do not wait for the writer. The mode stays in the file; asking first spares the lock
    # that setting it takes.
    if cursor.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        cursor.execute("PRAGMA journal_mode = WAL")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that will write takes the write lock at once. One that begins as a reader and
    # writes later fails with "database is locked" without waiting when another has written since.
    write = connection.get_execution_options().get("atlas_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _without_password(error: OperationalError | InterfaceError, engine: Engine) -> str:
    text = " ".join(str(error.orig).split())
    password = engine.url.password
    return text.replace(str(password), "***") if password else text


def _revision(connection: Connection) -> str | None:
    if not sa.inspect(connection).has_table(t.VERSION_TABLE):
        return None
    table = sa.table(t.VERSION_TABLE, sa.column("version_num", sa.String))
    return connection.scalar(sa.select(table.c.version_num))


def _require_known(connection: Connection, place: str) -> None:
    """Refuse a database that this version cannot have made."""
    revision = _revision(connection)
    if revision is None:
        ours = set(t.metadata.tables) & set(sa.inspect(connection).get_table_names())
        if ours:
            raise ConfigurationError(
                "the database has tables of these names that are not a catalog's",
                got=", ".join(sorted(ours)),
                remedy=f"give the catalog a database of its own instead of {place}",
            )
    elif revision > t.REVISION:
        raise ConfigurationError(
            "the catalog's schema is newer than this version of Atlas Loop",
            expected=f"at most {t.REVISION}",
            got=revision,
            remedy="use the version that made it, or a newer one",
        )


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
