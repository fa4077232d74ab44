"""What a backup holds, and the rules by which it is checked. Pure: no file, no database.

    backup.json             `Manifest`: what is below, with checksums
    catalog/<table>.jsonl   one row of the catalog per line, columns by name
    store.jsonl             one `StoredFile` per line: every file of the case store

Rows are JSON with instants in UTC, so that a catalog kept in SQLite comes back in PostgreSQL and
the other way round.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal

from pydantic import Field, ValidationError

from atlas_core.errors import ConfigurationError, CorruptFile
from atlas_core.frozen_model import FrozenModel

MANIFEST_FILE: Final = "backup.json"
STORE_FILE: Final = "store.jsonl"
CATALOG_FOLDER: Final = "catalog"

_DIGEST_SIZE: Final = 1 << 256


class StoredFile(FrozenModel):
    """One file of the case store."""

    path: str = Field(description="Relative to the root of the store, forward slashes.")
    size: int = Field(ge=0, description="Bytes.")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    mtime_ns: int | None = Field(
        default=None, description="When it was written; None: an earlier version made the list."
    )

    def is_still(self, size: int, mtime_ns: int) -> bool:
        """Whether a file of this path, size and time is the one that was read: the store writes a
        file once, and renames it into place."""
        return (self.size, self.mtime_ns) == (size, mtime_ns)


def place_in_list(path: str) -> tuple[tuple[bool, str], ...]:
    """Sorts paths as `CaseStore.files` yields them: in each folder its files, then its folders."""
    *folders, name = path.split("/")
    return (*((True, folder) for folder in folders), (False, name))


class TableDump(FrozenModel):
    """One table of the catalog."""

    rows: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="Of the file's bytes.")
    content: str = Field(
        pattern="^[0-9a-f]{64}$", description="`RowsDigest` of the rows, in any order."
    )


class StoreDump(FrozenModel):
    """The list of the case store's files."""

    files: int = Field(ge=0)
    size: int = Field(ge=0, description="Bytes of all files together.")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="Of the list.")


class Manifest(FrozenModel):
    """``backup.json``."""

    format: Literal[1] = 1
    made_at: datetime
    version: str = Field(description="Of the Atlas Loop that made it.")
    revision: str = Field(description="Of the catalog's schema.")
    tables: dict[str, TableDump]
    store: StoreDump | None = Field(description="None: the case store was left out.")


def read_manifest(text: str) -> Manifest:
    """The manifest in `text`.

    Raises:
        CorruptFile: it is not a manifest, or has another format.
    """
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise CorruptFile(
            f"{MANIFEST_FILE} is not the manifest of a backup that this version can read",
            got=f"{'.'.join(str(part) for part in first['loc']) or 'text'}: {first['msg']}",
        ) from None


def require_same_schema(manifest: Manifest, revision: str, tables: Iterable[str]) -> None:
    """Refuse a backup of another schema: rows are never converted.

    Raises:
        ConfigurationError: made by another schema version.
        CorruptFile: a table is missing, or there is one too many.
    """
    if manifest.revision != revision:
        raise ConfigurationError(
            "the backup was made with another version of the catalog's schema",
            expected=revision,
            got=manifest.revision,
            remedy=f"restore it with Atlas Loop {manifest.version}, then upgrade",
        )
    known = set(tables)
    if set(manifest.tables) != known:
        raise CorruptFile(
            "the backup does not hold the tables of its schema",
            expected=", ".join(sorted(known)),
            got=", ".join(sorted(manifest.tables)),
        )


def row_as_line(row: Mapping[str, Any]) -> bytes:
    """One row as one line of JSON, the same for equal values, whatever database they come from."""
    values = {
        name: value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value
        for name, value in row.items()
    }
    return json.dumps(values, sort_keys=True, ensure_ascii=False).encode() + b"\n"


class RowsDigest:
    """A checksum of rows that does not depend on their order, which databases choose differently.

    It is the sum of the lines' SHA-256 values modulo 2^256: equal for equal multisets of rows. It
    finds what is lost, doubled or altered by accident; it is no defence against forgery.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._sum = 0

    def add(self, line: bytes) -> None:
        """Include one row, in the form of `row_as_line`."""
        self.rows += 1
        self._sum = (self._sum + int.from_bytes(hashlib.sha256(line).digest())) % _DIGEST_SIZE

    def hexdigest(self) -> str:
        """The checksum of the rows so far, 64 hex digits."""
        return f"{self._sum:064x}"
