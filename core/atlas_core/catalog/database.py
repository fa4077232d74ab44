"""The database under the catalog: connection, schema and migrations, transactions, inserts."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import (
    DatabaseError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    OperationalError,
)

from atlas_core.atomic_writes import make_folders
from atlas_core.catalog import tables as t
from atlas_core.errors import ConfigurationError, Unavailable

BUSY_TIMEOUT_S: Final = 30
"""How long a write waits for another one on SQLite. Writes take milliseconds; a wait this long
means that another process keeps a transaction open."""

BUSY_POLL_S: Final = 0.01

CONNECT_TIMEOUT_S: Final = 10

NO_RIGHT: Final = "42501"
"""PostgreSQL's code for "insufficient privilege"."""

MIGRATION_LOCK: Final = 0x61746C6173
"""Key of PostgreSQL's advisory lock around a migration ("atlas" in ASCII)."""

ROWS_PER_STATEMENT: Final = 500
"""Both databases bound the number of parameters of a statement (32,766 on SQLite)."""

CASES_PER_QUERY: Final = 200
"""Cases that are looked up at once: their labels are a few thousand rows."""

_alembic = threading.Lock()  # Alembic's `context` is one per process

T = TypeVar("T")


class Database:
    """A pool of connections to a database whose schema is that of this version.

    Safe to share between threads. Make one with `open`; it is a context manager.

    Attributes:
        engine: the pool.
    """

    def __init__(self, engine: Engine) -> None:
        """Not for callers: use `open`, which checks the address and the schema."""
        self.engine = engine
        # A reader that asks twice sees one state of the catalog (on SQLite it does anyway).
        is_postgresql = engine.dialect.name == "postgresql"
        snapshot = {"isolation_level": "REPEATABLE READ"} if is_postgresql else {}
        self._reading = engine.execution_options(**snapshot)
        self._writing = engine.execution_options(atlas_write=True)
        self._place = engine.url.render_as_string(hide_password=True)

    @classmethod
    def open(cls, url: str, *, migrate: bool = True) -> Self:
        """Connect, and bring the schema up to date.

        Several processes may open (and so migrate) the same catalog at once: one of them migrates,
        the others wait for it.

        Args:
            url: ``sqlite:///relative.sqlite``, ``sqlite:////absolute.sqlite`` or
                ``postgresql://user:password@host:port/database?sslmode=verify-full``.
            migrate: create or upgrade the schema if needed; False where a deployment has a step of
                its own for that.

        Raises:
            ConfigurationError: another kind of address, a file that is no catalog, a schema that is
                newer than this version of Atlas Loop, or (``migrate=False``, or the role may not
                change it) older.
            Unavailable: the database does not answer. The message never holds the password.
        """
        database = cls(make_engine(url))
        try:
            database._bring_up_to_date(migrate)
        except BaseException:
            database.close()
            raise
        return database

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def transaction(self, *, write: bool) -> Iterator[Connection]:
        """One transaction: committed when the block ends, rolled back when it fails.

        Args:
            write: False: a reader's snapshot. True: on SQLite the write lock is taken at once.

        Raises:
            Unavailable: the database does not answer.
        """
        engine = self._writing if write else self._reading
        with self._translated(), engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Raise `Unavailable` where the database is down or busy; the message holds no password."""
        try:
            yield
        except IntegrityError:
            raise  # a rule of the schema was broken: our fault, not the database's
        except (OperationalError, InterfaceError) as error:
            raise Unavailable(
                "the catalog's database does not answer",
                got=_without_password(error, self.engine),
                remedy=f"check {self._place}",
            ) from None
        except DatabaseError as error:
            if "not a database" in str(error.orig):
                raise ConfigurationError(
                    "this file is not a catalog",
                    expected="an SQLite database",
                    remedy=f"check {self._place}",
                ) from None
            if getattr(error.orig, "sqlstate", None) == NO_RIGHT:
                raise ConfigurationError(
                    "this role of the database has not the right to do that",
                    got=_without_password(error, self.engine),
                    remedy="run `atlasloop migrate` as the catalog's owner, with the name of the "
                    "review service's role in ATLASLOOP_REVIEW_ROLE",
                ) from None
            raise

    def _bring_up_to_date(self, migrate: bool) -> None:
        with self.transaction(write=False) as connection:
            if _revision(connection) == t.REVISION:
                return
        if not migrate:
            with self.transaction(write=False) as connection:
                _require_known(connection, self._place)
            raise ConfigurationError(
                "the catalog's schema is older than this version of Atlas Loop",
                expected=t.REVISION,
                remedy="open it once with migration",
            )
        with self.migrating() as connection:
            if _revision(connection) != t.REVISION:  # no other process has migrated meanwhile
                _require_known(connection, self._place)
                from atlas_core.catalog.schema_steps import (
                    upgrade,
                )  # Alembic, which few starts need

                upgrade(connection)

    def step_down(self, revision: str, *, accept_loss: bool = False) -> dict[str, int]:
        """Bring the schema back to `revision`, for an earlier version of Atlas Loop.

        All or nothing. What that version knows stays as it is; this object is of no use afterwards.

        Args:
            accept_loss: rows that an earlier schema has no place for may go.

        Returns:
            How many rows went, by table.

        Raises:
            NotFound: there is no such revision below this one.
            ConfigurationError: a step on the way has no way back.
            Conflict: rows would be lost, and `accept_loss` is False.
        """
        from atlas_core.catalog.schema_steps import downgrade

        with self.migrating() as connection:
            return downgrade(connection, revision, accept_loss=accept_loss)

    @contextmanager
    def migrating(self) -> Iterator[Connection]:
        """A transaction that only one process at a time can be in."""
        with _alembic, self.transaction(write=True) as connection:
            if self.engine.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
            yield connection  # SQLite: BEGIN IMMEDIATE is that lock


def chunks(items: Sequence[T], size: int = CASES_PER_QUERY) -> Iterator[Sequence[T]]:
    """`items` in pieces of at most `size`.

    >>> list(chunks("abcde", 2))
    ['ab', 'cd', 'e']
    """
    for start in range(0, len(items), size):
        yield items[start : start + size]


def insert_new(
    connection: Connection,
    table: sa.Table,
    rows: Sequence[dict[str, Any]],
    *returned: sa.Column[Any],
) -> list[sa.Row[Any]]:
    """Insert the rows that the table, by its unique constraints, does not hold yet.

    Args:
        rows: values by column; keys that are no column are ignored, and instants may be text.
        returned: columns of the result; none: the primary key.

    Returns:
        Of each row that was new, the columns `returned`.
    """
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    new: list[sa.Row[Any]] = []
    for chunk in chunks(_native(table, rows), ROWS_PER_STATEMENT):
        query = dialect.insert(table).values(chunk).on_conflict_do_nothing()
        # New is what comes back: drivers differ in what they call the row count.
        new += connection.execute(query.returning(*(returned or table.primary_key)))
    return new


def _native(table: sa.Table, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Instants that were turned into text for JSON, back as instants; only the table's columns."""
    instants = [c.name for c in table.columns if isinstance(c.type, t.UtcDateTime)]
    names = set(table.columns.keys())
    return [
        {
            name: datetime.fromisoformat(value)
            if name in instants and isinstance(value, str)
            else value
            for name, value in row.items()
            if name in names
        }
        for row in rows
    ]


def make_engine(url: str) -> Engine:
    """The pool of connections to the database at `url`; none is opened yet.

    Raises:
        ConfigurationError: an address that cannot be read, or is of another kind of database.
    """
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
    file = Path(str(address.database))
    # Names of annotators, file names of imports, a vault's patients: the owner's alone.
    make_folders(file.parent, mode=0o700)
    with contextlib.suppress(OSError):  # there already; else the driver says better what is wrong
        file.touch(mode=0o600, exist_ok=False)
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
    _write_ahead(cursor)
    cursor.close()


def _write_ahead(cursor: Any) -> None:
    """Set WAL: readers do not wait for the writer. The mode stays in the file; asking first spares
    the lock that setting it takes, for which SQLite fails at once instead of waiting."""
    until = time.monotonic() + BUSY_TIMEOUT_S
    while cursor.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY  # or an extended code of it
            if not busy or time.monotonic() > until:
                raise
            time.sleep(BUSY_POLL_S)


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that will write takes the write lock at once. One that begins as a reader and
    # writes later fails with "database is locked" without waiting when another has written since.
    write = connection.get_execution_options().get("atlas_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _without_password(error: DBAPIError, engine: Engine) -> str:
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
