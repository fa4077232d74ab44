"""Comments on cases: threads between those who look at one after another."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from atlas_core.catalog import Catalog, now
from atlas_core.catalog import tables as t
from atlas_core.errors import InvalidInput, LimitExceeded
from atlas_core.review.clock import Clock
from atlas_core.review.records import Comment

MAX_COMMENTS: Final = 500
"""Of one case."""

_c = t.revision_comments.c


class Comments:
    """The comments in a catalog. Safe to share between threads."""

    def __init__(self, catalog: Catalog, *, clock: Clock = now) -> None:
        self._catalog = catalog
        self._now = clock

    def add(
        self,
        case_id: str,
        author: str,
        text: str,
        organ: str | None = None,
        voxel_ijk: tuple[int, int, int] | None = None,
    ) -> Comment:
        """Put a comment on record.

        Raises:
            InvalidInput: no text.
            LimitExceeded: the case has `MAX_COMMENTS`.
        """
        if not text.strip():
            raise InvalidInput("a comment without a text", case=case_id)
        row = {
            "case_id": case_id,
            "author": author,
            "text": text,
            "organ": organ,
            "voxel_ijk": voxel_ijk,
            "created_at": self._now(),
        }
        count = sa.select(sa.func.count()).where(_c.case_id == case_id)
        with self._catalog.transaction(write=True) as connection:
            if (connection.scalar(count) or 0) >= MAX_COMMENTS:
                raise LimitExceeded(
                    "too many comments", case=case_id, expected=f"at most {MAX_COMMENTS}"
                )
            query = sa.insert(t.revision_comments).values(row).returning(_c.id)
            return Comment(id=connection.execute(query).scalar_one(), **row)

    def of_case(self, case_id: str) -> list[Comment]:
        """All comments on a case, oldest first."""
        query = sa.select(t.revision_comments).where(_c.case_id == case_id).order_by(_c.id)
        with self._catalog.transaction(write=False) as connection:
            rows = connection.execute(query).mappings()
            return [Comment.model_validate(dict(row)) for row in rows]
