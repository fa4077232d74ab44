"""UIDs of scans, by which cases are recognised that belong together; see `records.UidRole`.

The catalog holds their checksums: UIDs lead to patients in the archives that gave them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence

import sqlalchemy as sa

from atlas_core.catalog import tables as t
from atlas_core.catalog.catalog import Catalog
from atlas_core.catalog.database import chunks, insert_new
from atlas_core.records import UidRole

_u = t.case_uids.c


def record_uids(catalog: Catalog, case_id: str, uids: Mapping[UidRole, Collection[str]]) -> None:
    """Record UIDs of a case beside those that are on record.

    Raises:
        NotFound: no such case.
    """
    rows = [
        {"case_id": case_id, "role": role.value, "uid_sha256": _sha256(uid)}
        for role, each in uids.items()
        for uid in sorted(each)
    ]
    if rows:
        with catalog.transaction(write=True) as connection:
            insert_new(connection, t.case_uids, rows)


def sharing_uids(catalog: Catalog, case_id: str) -> Iterator[tuple[str, UidRole, UidRole]]:
    """Other cases with a UID of this one, by id: which, the UID's role there, and here."""
    other = t.case_uids.alias("other")
    query = (
        sa.select(other.c.case_id, other.c.role, _u.role.label("here"))
        .distinct()
        .join(other, other.c.uid_sha256 == _u.uid_sha256)
        .where(_u.case_id == case_id, other.c.case_id != case_id)
        .order_by(other.c.case_id, other.c.role, _u.role)
    )
    with catalog.transaction(write=False) as connection:
        rows = connection.execute(query).all()
    return ((row.case_id, UidRole(row.role), UidRole(row.here)) for row in rows)


def uid_marks(catalog: Catalog, case_ids: Sequence[str]) -> dict[str, frozenset[str]]:
    """Checksums of the UIDs of these cases, any number of them; cases without any are left out."""
    found: dict[str, set[str]] = {}
    with catalog.transaction(write=False) as connection:
        for chunk in chunks(case_ids):
            query = sa.select(_u.case_id, _u.uid_sha256).where(_u.case_id.in_(chunk))
            for row in connection.execute(query):
                found.setdefault(row.case_id, set()).add(row.uid_sha256)
    return {case_id: frozenset(marks) for case_id, marks in found.items()}


def _sha256(uid: str) -> str:
    return hashlib.sha256(uid.encode()).hexdigest()
