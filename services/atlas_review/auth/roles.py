"""Who may do what."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class Role(StrEnum):
    """What somebody may do; a later one may do all that an earlier one may."""

    ANNOTATOR = "annotator"
    """Takes cases and revises them."""
    READER = "reader"
    """Second reader: also takes what annotators were unsure of, and opens finished cases again."""
    MANAGER = "manager"
    """Also fills the queue and reads the audit log."""


_RANKS = (Role.ANNOTATOR, Role.READER, Role.MANAGER)

How = Literal["session", "bearer", "insecure"]


@dataclass(frozen=True)
class Identity:
    """Who asks.

    Attributes:
        user: name.
        roles: what he may do.
        how: a browser's session, a bearer token, or nobody asked.
        csrf_token: what a page repeats with every write; empty for others.
    """

    user: str
    roles: tuple[Role, ...]
    how: How
    csrf_token: str = ""

    def may(self, role: Role) -> bool:
        """Whether one of the roles is `role`, or a higher one."""
        return any(_RANKS.index(own) >= _RANKS.index(role) for own in self.roles)


def known_roles(names: Collection[str]) -> tuple[Role, ...]:
    """The roles among `names`, lowest first."""
    return tuple(role for role in _RANKS if role.value in names)
