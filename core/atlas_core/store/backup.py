"""Backup and restore of the catalog, with a verified list of the case store's files.

The volumes themselves are left to the storage system (a snapshot, or a copy of the folder): they
are large, never change, and are named by their content. The list made here shows whether such a
copy is complete and undamaged. See `atlas_core.store.backup_format` for the files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy import Connection

from atlas_core.atomic_writes import new_folder, synced_file, write_synced
from atlas_core.catalog import Catalog
from atlas_core.catalog import tables as t
from atlas_core.errors import ConfigurationError, Conflict, CorruptFile, NotFound
from atlas_core.store.backup_format import (
    CATALOG_FOLDER,
    MANIFEST_FILE,
    STORE_FILE,
    Manifest,
    RowsDigest,
    StoredFile,
    StoreDump,
    TableDump,
    place_in_list,
    read_manifest,
    require_same_schema,
    row_as_line,
)
from atlas_core.store.case_store import CaseStore

ROWS_PER_INSERT: Final = 500

HASHING_THREADS: Final = 4
"""A disk array gains from a few readers; SHA-256 releases the interpreter lock."""

OnFile = Callable[[StoredFile], None]
"""Called with each file of the store that was listed or compared."""

_NAMED_FILES: Final = ("labels", "label_submissions", "assemblies")
"""Tables whose column `path` names a file of the store that stays as long as the row."""


def _silent(_file: StoredFile) -> None:
    return None


def write_backup(
    catalog: Catalog,
    store: CaseStore | None,
    target: Path,
    on_file: OnFile = _silent,
    *,
    earlier: Path | None = None,
) -> Manifest:
    """Back up `catalog` and the list of the files of `store` into the new folder `target`.

    The catalog is read in one snapshot, the store after it: files are written before their rows, so
    every file that a row names is there. Others may work meanwhile. The folder appears when all of
    it is on disk.

    Args:
        store: None leaves the case store out.
        earlier: a backup of this store: what it lists, and is of the same size and time, is not
            read again; see `newest_backup`. None: every file is read.

    Raises:
        Conflict: `target` is there already.
        ConfigurationError: it cannot be written.
        NotFound: the store lacks a file that the catalog names.
        CorruptFile: the list of `earlier` is not the one that was written.
    """
    if target.exists():
        raise Conflict(
            "there is something of this name already", got=target, remedy="name a new folder"
        )
    # Ids, names of annotators: for its owner only.
    with _writing_errors(target), new_folder(target, mode=0o700) as folder:
        (folder / CATALOG_FOLDER).mkdir()
        named: set[str] = set()
        with catalog.transaction(write=False) as connection:
            tables = {
                table.name: _dump_table(connection, table, folder, named)
                for table in t.metadata.sorted_tables
            }
        manifest = Manifest(
            made_at=datetime.now(UTC),
            version=version("atlasloop"),
            revision=t.REVISION,
            tables=tables,
            store=None if store is None else _dump_store(store, folder, named, on_file, earlier),
        )
        write_synced(folder / MANIFEST_FILE, manifest.model_dump_json(indent=2).encode() + b"\n")
    return manifest


def newest_backup(folder: Path) -> Path | None:
    """The newest complete backup in `folder` that lists a case store and whose list is undamaged;
    None: there is none."""
    found = []
    for path in folder.glob(f"*/{MANIFEST_FILE}"):
        with contextlib.suppress(CorruptFile, OSError):
            manifest = read_manifest(path.read_text(encoding="utf-8"))
            if manifest.store is not None:
                found.append((manifest.made_at, path.parent, manifest.store.sha256))
    for _, backup, checksum in sorted(found, reverse=True):
        with contextlib.suppress(CorruptFile):
            _require_sha256(backup / STORE_FILE, checksum)
            return backup
    return None


def verify_backup(source: Path) -> Manifest:
    """Check that the backup in folder `source` is complete, undamaged, and of this schema version.

    Raises:
        NotFound: there is none.
        CorruptFile: a file is missing, or is not the one that was written.
        ConfigurationError: it is of another schema version.
    """
    path = source / MANIFEST_FILE
    if not path.is_file():
        raise NotFound(f"no backup in {source}", expected=MANIFEST_FILE)
    manifest = read_manifest(path.read_text(encoding="utf-8"))
    require_same_schema(manifest, t.REVISION, t.metadata.tables)
    for name, dump in manifest.tables.items():
        _require_sha256(_table_file(source, name), dump.sha256)
    if manifest.store is not None:
        _require_sha256(source / STORE_FILE, manifest.store.sha256)
    return manifest


def verify_store(source: Path, store: CaseStore, on_file: OnFile = _silent) -> int:
    """Compare `store` with the list in the backup, file by file and byte by byte.

    Files that are not on the list do no harm: they were added after the backup.

    Returns:
        How many files were compared.

    Raises:
        CorruptFile: files are missing or differ; the first are named.
    """

    def compare(wanted: StoredFile) -> str | None:
        path = store.path(wanted.path)
        if not path.is_file():
            return f"{wanted.path} is missing"
        if path.stat().st_size != wanted.size or _sha256(path) != wanted.sha256:
            return f"{wanted.path} differs"
        on_file(wanted)
        return None

    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        found = list(pool.map(compare, _listed_files(source)))
    wrong = [problem for problem in found if problem is not None]
    if wrong:
        raise CorruptFile(
            "the case store is not the one of the backup",
            expected=f"{len(found)} files as listed",
            got=f"{len(wrong)} wrong: {'; '.join(wrong[:5])}{' …' if len(wrong) > 5 else ''}",
            remedy="restore the store from its own copy first",
        )
    return len(found)


def restore_catalog(source: Path, catalog: Catalog) -> int:
    """Fill the empty `catalog` from the backup in folder `source`, all or nothing.

    What was written is read back and compared before the transaction is committed.

    Returns:
        How many rows there are now.

    Raises:
        Conflict: the catalog is not empty.
        NotFound, CorruptFile, ConfigurationError: see `verify_backup`; nothing was written.
    """
    manifest = verify_backup(source)
    with catalog.transaction(write=True) as connection:
        _require_empty(connection)
        connection.execute(sa.delete(t.organ_schemes))  # what a new catalog begins with
        for table in t.metadata.sorted_tables:
            _fill_table(connection, table, source)
            _advance_sequence(connection, table)
        for table in t.metadata.sorted_tables:
            _require_content(connection, table, manifest.tables[table.name])
    return sum(dump.rows for dump in manifest.tables.values())


# Writing


def _dump_table(
    connection: Connection, table: sa.Table, folder: Path, named: set[str]
) -> TableDump:
    digest, checksum = RowsDigest(), hashlib.sha256()
    with synced_file(_table_file(folder, table.name)) as file:
        for row in _rows(connection, table):
            line = row_as_line(row)
            digest.add(line)
            checksum.update(line)
            file.write(line)
            if table.name in _NAMED_FILES:
                named.add(row["path"])
    return TableDump(rows=digest.rows, sha256=checksum.hexdigest(), content=digest.hexdigest())


def _dump_store(
    store: CaseStore, folder: Path, named: set[str], on_file: OnFile, earlier: Path | None
) -> StoreDump:
    checksum, files, size = hashlib.sha256(), 0, 0
    missing = set(named)
    before = iter(()) if earlier is None else _listed_files(earlier)
    with synced_file(folder / STORE_FILE) as file, ThreadPoolExecutor(HASHING_THREADS) as pool:
        for found in pool.map(lambda one: _look(store, *one), _with_record(store, before)):
            if found is None:
                continue  # deleted in between; if a row names it, that is noticed below
            line = row_as_line(found.model_dump())
            checksum.update(line)
            file.write(line)
            files, size = files + 1, size + found.size
            missing.discard(found.path)
            on_file(found)
    if missing:
        raise NotFound(
            f"the case store lacks {len(missing)} files that the catalog names",
            got=sorted(missing)[0],
            remedy="check that the store is mounted; if a case was deleted just now, run it again",
        )
    return StoreDump(files=files, size=size, sha256=checksum.hexdigest())


def _with_record(
    store: CaseStore, before: Iterator[StoredFile]
) -> Iterator[tuple[Path, StoredFile | None]]:
    """Every file, with what `before`, which is sorted as the files are, says of its path."""
    record = next(before, None)
    for path in store.files():
        place = place_in_list(store.relative(path))
        while record is not None and place_in_list(record.path) < place:
            record = next(before, None)
        known = record is not None and place_in_list(record.path) == place
        yield path, record if known else None


def _look(store: CaseStore, path: Path, known: StoredFile | None) -> StoredFile | None:
    try:
        status = path.stat()
        if known is not None and known.is_still(status.st_size, status.st_mtime_ns):
            return known
        return StoredFile(
            path=store.relative(path),
            size=status.st_size,
            mtime_ns=status.st_mtime_ns,
            sha256=_sha256(path),
        )
    except FileNotFoundError:
        return None


@contextmanager
def _writing_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"the backup cannot be written to {target}",
            got=error.strerror,
            remedy="name a folder on a disk that is writable and has room",
        ) from None


# Reading


def _table_file(folder: Path, name: str) -> Path:
    return folder / CATALOG_FOLDER / f"{name}.jsonl"


def _rows(connection: Connection, table: sa.Table) -> Iterator[dict[str, Any]]:
    # Streamed: organ scores of a full atlas are many rows.
    query = sa.select(table).order_by(*table.primary_key)
    found = connection.execution_options(yield_per=ROWS_PER_INSERT).execute(query)
    for row in found.mappings():
        yield dict(row)


def _listed_files(source: Path) -> Iterator[StoredFile]:
    with (source / STORE_FILE).open("rb") as file:
        for line in file:
            try:
                yield StoredFile.model_validate_json(line)
            except ValidationError:
                raise CorruptFile(f"{STORE_FILE} holds a line that is no file") from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_sha256(path: Path, expected: str) -> None:
    if not path.is_file():
        raise CorruptFile("a file of the backup is missing", got=path.name)
    found = _sha256(path)
    if found != expected:
        raise CorruptFile(
            f"{path.name} is not the file that the backup wrote",
            expected=f"sha256 {expected[:12]}…",
            got=f"{found[:12]}…",
            remedy="use another copy of the backup",
        )


# Filling


def _require_empty(connection: Connection) -> None:
    for table in t.metadata.sorted_tables:
        if table is t.organ_schemes:
            continue  # a new catalog has some, too
        if connection.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).first():
            raise Conflict(
                "the catalog is not empty",
                got=f"rows in {table.name}",
                remedy="restore into a new database, and point Atlas Loop to it",
            )


def _fill_table(connection: Connection, table: sa.Table, source: Path) -> None:
    instants = [c.name for c in table.columns if isinstance(c.type, t.UtcDateTime)]
    batch: list[dict[str, Any]] = []
    with _table_file(source, table.name).open("rb") as file:
        for line in file:
            row = json.loads(line)
            for name in instants:
                if row[name] is not None:
                    row[name] = datetime.fromisoformat(row[name])
            batch.append(row)
            if len(batch) == ROWS_PER_INSERT:
                connection.execute(sa.insert(table), batch)
                batch = []
    if batch:
        connection.execute(sa.insert(table), batch)


def _advance_sequence(connection: Connection, table: sa.Table) -> None:
    """PostgreSQL hands out numbers by a counter that knows nothing of rows with given numbers."""
    column = table.autoincrement_column
    if column is None or connection.dialect.name != "postgresql":
        return
    newest = connection.scalar(sa.select(sa.func.max(column)))
    if newest is not None:
        sequence = sa.func.pg_get_serial_sequence(table.name, column.name)
        connection.execute(sa.select(sa.func.setval(sequence, newest)))


def _require_content(connection: Connection, table: sa.Table, wanted: TableDump) -> None:
    digest = RowsDigest()
    for row in _rows(connection, table):
        digest.add(row_as_line(row))
    if (digest.rows, digest.hexdigest()) != (wanted.rows, wanted.content):
        raise CorruptFile(
            f"table {table.name} does not come back as it was",
            expected=f"{wanted.rows} rows",
            got=f"{digest.rows} rows, or other values",
            remedy="nothing was written; report this with the backup's version",
        )
