"""What a run leaves in case store and catalog, without times: equal for equal work."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from atlas_core.catalog import Catalog, tables
from atlas_core.store import CaseStore

TIMES = {"total_s", "predict_s", "seconds", "at"}
"""What may differ between two runs, beside every field that ends in ``_at``."""


def files_of(folder: Path) -> dict[str, str]:
    """Path below `folder` → content, of everything that is not being written."""
    return {
        path.relative_to(folder).as_posix(): _content(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".incoming" not in path.parts
    }


def rows_of(catalog: Catalog) -> dict[str, list[str]]:
    """Table → its rows as text, in an order that does not depend on when they were written."""
    with catalog.transaction(write=False) as connection:
        return {
            table.name: sorted(
                json.dumps(without_times(_without_number(row)), sort_keys=True, default=str)
                for row in connection.execute(sa.select(table)).mappings()
            )
            for table in tables.metadata.sorted_tables
        }


def without_times(value: Any) -> Any:
    """A JSON value without what tells when it was made, at any depth."""
    if isinstance(value, dict):
        return {
            key: without_times(item)
            for key, item in value.items()
            if key not in TIMES and not str(key).endswith("_at")
        }
    return [without_times(item) for item in value] if isinstance(value, list) else value


def broken_promises(catalog: Catalog, store: CaseStore) -> list[str]:
    """Files that the catalog names and the store does not have, or has with other bytes."""
    return [
        label.path
        for case in catalog.cases()
        for label in catalog.labels(case.id)
        if not (path := store.path(label.path)).is_file()
        or hashlib.sha256(path.read_bytes()).hexdigest() != label.sha256
    ] + [case.id for case in catalog.cases() if not store.ct_path(case.id).is_file()]


def _without_number(row: sa.RowMapping) -> dict[str, Any]:
    """A row without the number that the database gave it: it tells the order of writing."""
    return {key: value for key, value in row.items() if key != "id" or isinstance(value, str)}


def _content(path: Path) -> str:
    """SHA-256 of a file's bytes; of a JSON file without its times."""
    if path.suffix != ".json":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return json.dumps(without_times(json.loads(path.read_bytes())), sort_keys=True)
