"""Drafts: unfinished drawings, kept so that a closed tab loses nothing. Each has one author."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from atlas_core.catalog import Catalog
from atlas_core.catalog import tables as t
from atlas_core.errors import NotFound
from atlas_core.review.records import Draft, TaskState

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

    def exists(self, task_id: int, author: str) -> bool:
        """Whether `author` has one."""
        query = sa.select(_d.task_id).where(_d.task_id == task_id, _d.author == author)
        with self._catalog.transaction(write=False) as connection:
            return connection.scalar(query) is not None

    def drop_skipped(self, before: datetime) -> list[str]:
        """Delete the drafts of tasks that were skipped before an instant; returns their paths."""
        k = t.revision_tasks.c
        skipped = sa.select(k.id).where(k.state == TaskState.SKIPPED.value, k.updated_at < before)
        query = sa.delete(t.revision_drafts).where(_d.task_id.in_(skipped)).returning(_d.path)
        with self._catalog.transaction(write=True) as connection:
            return list(connection.scalars(query))

    def drop(self, task_id: int, author: str) -> str | None:
        """Delete the draft of `author`; returns the path of its file, or None."""
        mine = (_d.task_id == task_id) & (_d.author == author)
        with self._catalog.transaction(write=True) as connection:
            return connection.scalar(sa.delete(t.revision_drafts).where(mine).returning(_d.path))
