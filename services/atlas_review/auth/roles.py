"""Roles, and the identity that a request acts under."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class Role(StrEnum):
    """What somebody may do; each role includes the ones before it."""

    ANNOTATOR = "annotator"
    """Takes cases and revises them."""
    READER = "reader"
    """Second reader: also takes cases that annotators were unsure of, and reopens finished ones."""
    MANAGER = "manager"
    """Also fills the queue and reads the audit log."""


_RANKS = (Role.ANNOTATOR, Role.READER, Role.MANAGER)

SignInMethod = Literal["session", "bearer", "insecure"]


@dataclass(frozen=True)
class Identity:
    """The caller of a request.

    Attributes:
        user: name.
        roles: what they may do.
        method: a browser's session, a bearer token, or an insecure service that asks for neither.
        csrf_token: what the page repeats with every write; empty for other methods.
    """

    user: str
    roles: tuple[Role, ...]
    method: SignInMethod
    csrf_token: str = ""

    def may(self, role: Role) -> bool:
        """Whether one of the roles is `role` or a higher one."""
        return any(_RANKS.index(held) >= _RANKS.index(role) for held in self.roles)


def roles_named(names: Collection[str]) -> tuple[Role, ...]:
    """The roles among `names`, lowest first; other names are ignored."""
    return tuple(role for role in _RANKS if role.value in names)
