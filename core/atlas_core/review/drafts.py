"""Drafts: unfinished drawings, kept so that a closed tab loses nothing. Each has one author."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import sqlalchemy as sa

from atlas_core.catalog import Catalog
from atlas_core.catalog import tables as t
from atlas_core.errors import NotFound
from atlas_core.review.records import Draft, TaskState

MAX_PAGES: Final = 3
"""Drafts of other pages of an author that are kept for one task."""

_d = t.revision_drafts.c


class Drafts:
    """The drafts in a catalog. Their files are the caller's to write before and remove after.

    Safe to share between threads.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def save(self, draft: Draft) -> list[str]:
        """Save `draft` in place of the previous one of its author, task and page. Those of other
        pages stay, the newest `MAX_PAGES` of them.

        Returns:
            Paths of the files that are no longer needed.
        """
        mine = (_d.task_id == draft.task_id) & (_d.author == draft.author)
        others = sa.select(_d.page).where(mine, _d.page != draft.page)
        stale = others.order_by(_d.saved_at.desc(), _d.page).offset(MAX_PAGES)
        with self._catalog.transaction(write=True) as connection:
            gone = [draft.page, *connection.scalars(stale)]
            query = sa.delete(t.revision_drafts).where(mine, _d.page.in_(gone))
            old = list(connection.scalars(query.returning(_d.path)))
            connection.execute(sa.insert(t.revision_drafts).values(draft.model_dump()))
        return old

    def of_author(self, task_id: int, author: str) -> list[Draft]:
        """The drafts of `author`: first that of the page that works on the task, then newer before
        older ones."""
        working = sa.select(t.revision_tasks.c.page).where(t.revision_tasks.c.id == task_id)
        query = (
            sa.select(t.revision_drafts)
            .where(_d.task_id == task_id, _d.author == author)
            .order_by(_d.saved_at.desc(), _d.page)
        )
        with self._catalog.transaction(write=False) as connection:
            page = connection.scalar(working)
            found = [Draft.model_validate(dict(r)) for r in connection.execute(query).mappings()]
        return sorted(found, key=lambda draft: draft.page != page)

    def find(self, task_id: int, author: str, page: str | None = None) -> Draft:
        """The draft of `author`, of one page or (None) the first of `of_author`.

        Raises:
            NotFound: there is none.
        """
        for draft in self.of_author(task_id, author):
            if page in (None, draft.page):
                return draft
        raise NotFound("no draft of yours", got=f"task {task_id}")

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

    def drop(self, task_id: int, author: str) -> list[str]:
        """Delete the drafts of `author`, of every page; returns the paths of their files."""
        mine = (_d.task_id == task_id) & (_d.author == author)
        with self._catalog.transaction(write=True) as connection:
            query = sa.delete(t.revision_drafts).where(mine).returning(_d.path)
            return list(connection.scalars(query))
