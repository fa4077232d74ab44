"""Files of hand-ins and drafts that no row names: a killed service leaves them, and nobody reads
them."""

from __future__ import annotations

import time
from typing import Final

import sqlalchemy as sa

from atlas_core.catalog import Catalog
from atlas_core.catalog import tables as t
from atlas_core.store import CaseStore

SET_ASIDE_AFTER_S: Final = 24 * 3600.0
"""No upload waits so long for its row."""


def set_orphans_aside(
    store: CaseStore, catalog: Catalog, older_than_s: float = SET_ASIDE_AFTER_S
) -> list[str]:
    """Move every such file that is older than `older_than_s` to ``orphans`` beside ``cases``.

    They are moved and not removed: where a catalog was restored from an older backup than its
    store, they are hand-ins that it does not know. Cases that it does not know are left alone.

    Returns:
        Their paths in the store, before.
    """
    # Files first: a row that comes in between names a file that is too new to be moved.
    written = [store.relative(path) for path in store.hand_ins(time.time() - older_than_s)]
    if not written:
        return []
    named = sa.union(
        *(sa.select(table.c.path) for table in (t.labels, t.label_submissions, t.revision_drafts))
    )
    with catalog.transaction(write=False) as connection:
        known = set(connection.scalars(named))
        cases = set(connection.scalars(sa.select(t.cases.c.id)))
    orphans = [path for path in written if path not in known and path.split("/")[1] in cases]
    for path in orphans:
        store.set_aside(path)
    return orphans
