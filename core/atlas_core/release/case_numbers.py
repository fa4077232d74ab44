"""The numbers by which releases name cases: given once, and never to another CT.

They say nothing of where a case comes from. They belong to the content of a CT, so that one which
was deleted and imported again has its number back.
"""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa
from sqlalchemy import Connection

from atlas_core.catalog import Catalog, chunks, insert_new
from atlas_core.catalog import tables as t
from atlas_core.records import Case


def case_numbers(catalog: Catalog, cases: Collection[Case]) -> dict[str, int]:
    """The number of every case, by case id; those without one get the next, in this order."""
    contents = [case.content_sha256 for case in cases]
    with catalog.transaction(write=True) as connection:
        known = _known(connection, contents)
        new = [{"content_sha256": content} for content in contents if content not in known]
        insert_new(connection, t.released_cases, new)
        numbers = _known(connection, contents)
    return {case.id: numbers[case.content_sha256] for case in cases}


def _known(connection: Connection, contents: list[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    column = t.released_cases.c
    for chunk in chunks(contents):
        query = sa.select(column.content_sha256, column.number)
        rows = connection.execute(query.where(column.content_sha256.in_(chunk)))
        found.update({row.content_sha256: row.number for row in rows})
    return found
