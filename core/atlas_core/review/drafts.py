"""Drafts: unfinished drawings, kept so that a closed tab loses nothing. Each has one author."""

from __future__ import annotations

import sqlalchemy as sa

from atlas_core.catalog import Catalog
from atlas_core.catalog import tables as t
from atlas_core.errors import NotFound
from atlas_core.review.records import Draft

_d = t.revision_drafts.c


class Drafts:
    """The drafts in a catalog. Their files are the caller's to write before and remove after.

    Safe to share between threads.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def save(self, draft: Draft) -> str | None:
        """Save `draft` in place of its author's previous one for this task.

        Returns:
            Path of the file that is no longer needed; None if there was none.
        """
        mine = (_d.task_id == draft.task_id) & (_d.author == draft.author)
        with self._catalog.transaction(write=True) as connection:
            old = connection.scalar(sa.delete(t.revision_drafts).where(mine).returning(_d.path))
            connection.execute(sa.insert(t.revision_drafts).values(draft.model_dump()))
        return old

    def find(self, task_id: int, author: str) -> Draft:
        """The draft of `author`.

        Raises:
            NotFound: there is none.
        """
        query = sa.select(t.revision_drafts).where(_d.task_id == task_id, _d.author == author)
        with self._catalog.transaction(write=False) as connection:
            row = connection.execute(query).mappings().one_or_none()
        if row is None:
            raise NotFound("no draft of yours", got=f"task {task_id}")
        return Draft.model_validate(dict(row))

    def drop(self, task_id: int, author: str) -> str | None:
        """Delete the draft of `author`; returns the path of its file, or None."""
        mine = (_d.task_id == task_id) & (_d.author == author)
        with self._catalog.transaction(write=True) as connection:
            return connection.scalar(sa.delete(t.revision_drafts).where(mine).returning(_d.path))
