"""Which organs this atlas has: chosen while it is empty, extended later, else never changed."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy import Connection

from atlas_core.catalog import tables as t
from atlas_core.catalog.database import Database
from atlas_core.errors import Conflict
from atlas_core.organs import OrganScheme


def remembered_scheme(connection: Connection) -> OrganScheme:
    """The organs of this atlas, in the transaction of `connection`."""
    s = t.organ_schemes.c
    query = sa.select(s.name, s.organs).order_by(s.id.desc()).limit(1)
    return OrganScheme.model_validate(dict(connection.execute(query).mappings().one()))


def choose_organs(catalog: Database, scheme: OrganScheme) -> None:
    """Make `scheme` the organs of this atlas, which has no case yet.

    Where ids and names are those that it has, colours, aliases and the like are taken over at any
    time.

    Raises:
        Conflict: it has cases already, and other organs; both are named.
    """
    with catalog.transaction(write=True) as connection:
        known = remembered_scheme(connection)
        first_case = sa.select(sa.literal(1)).select_from(t.cases).limit(1)
        if known.digest != scheme.digest and connection.execute(first_case).first():
            raise Conflict(
                "this atlas was made with other organs",
                expected=known,
                got=scheme,
                remedy="leave --organs out; `atlasloop organs extend` adds organs, and others need "
                "an atlas of their own",
            )
        _remember(connection, known, scheme)


def extend_organs(catalog: Database, scheme: OrganScheme) -> tuple[str, ...]:
    """Make `scheme`, which has all organs of this atlas and more, its organs.

    Cases that are there already count as unlabelled for what is new.

    Returns:
        The organs that are new.

    Raises:
        Conflict: an organ that the atlas has is missing, or has another id.
    """
    with catalog.transaction(write=True) as connection:
        known = remembered_scheme(connection)
        scheme.require_extends(known)
        _remember(connection, known, scheme)
        return tuple(name for name in scheme.names if name not in known)


def _remember(connection: Connection, known: OrganScheme, scheme: OrganScheme) -> None:
    if scheme == known:
        return
    row = scheme.model_dump(mode="json", exclude_defaults=True) | {"name": scheme.name}
    values = row | {"sha256": scheme.digest, "recorded_at": datetime.now(UTC)}
    connection.execute(sa.insert(t.organ_schemes).values(values))
