"""Sign-ins: authenticated users with the time their sign-in expires. Kept in the catalog, so that
every replica of a service knows them and a sign-out holds everywhere. Secrets are stored as hashes
only."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from atlas_core.catalog import Catalog, now
from atlas_core.catalog import tables as t
from atlas_core.review.clock import Clock

_i = t.sign_ins.c

SECRET_BYTES = 32


@dataclass(frozen=True)
class SignIn:
    """One sign-in.

    Attributes:
        user: name.
        roles: at the time of the sign-in.
        csrf_token: to be sent with every write of a page.
        expires_at: when it ends.
    """

    user: str
    roles: tuple[str, ...]
    csrf_token: str
    expires_at: datetime


class SignIns:
    """The sign-ins in a catalog. Safe to share between threads."""

    def __init__(self, catalog: Catalog, *, clock: Clock = now) -> None:
        self._catalog = catalog
        self._now = clock

    def start(
        self, kind: str, user: str, roles: Sequence[str], lasts: timedelta
    ) -> tuple[str, SignIn]:
        """A new sign-in and its secret, which cannot be retrieved later.

        Args:
            kind: "session" or "bearer"; a secret is valid for its own kind only.
        """
        secret = secrets.token_urlsafe(SECRET_BYTES)
        sign_in = SignIn(
            user, tuple(roles), secrets.token_urlsafe(SECRET_BYTES), self._now() + lasts
        )
        with self._catalog.transaction(write=True) as connection:
            connection.execute(sa.delete(t.sign_ins).where(_i.expires_at <= self._now()))
            connection.execute(
                sa.insert(t.sign_ins).values(
                    secret_sha256=_hash(secret),
                    kind=kind,
                    user_name=user,
                    roles=list(roles),
                    csrf_token=sign_in.csrf_token,
                    expires_at=sign_in.expires_at,
                )
            )
        return secret, sign_in

    def find(self, kind: str, secret: str) -> SignIn | None:
        """The sign-in of this secret, if it has not expired."""
        query = sa.select(_i.user_name, _i.roles, _i.csrf_token, _i.expires_at).where(
            _i.secret_sha256 == _hash(secret), _i.kind == kind, _i.expires_at > self._now()
        )
        with self._catalog.transaction(write=False) as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            return None
        return SignIn(row.user_name, tuple(row.roles), row.csrf_token, row.expires_at)

    def end(self, secret: str) -> bool:
        """End the sign-in of this secret; False if there was none."""
        of_secret = sa.delete(t.sign_ins).where(_i.secret_sha256 == _hash(secret))
        with self._catalog.transaction(write=True) as connection:
            return bool(connection.execute(of_secret).rowcount)

    def end_all(self, user: str) -> int:
        """Sign a user out everywhere; returns the number of sign-ins that ended."""
        with self._catalog.transaction(write=True) as connection:
            return connection.execute(sa.delete(t.sign_ins).where(_i.user_name == user)).rowcount


def _hash(secret: str) -> str:
    # A plain hash is enough: 256 random bits cannot be guessed.
    return hashlib.sha256(secret.encode()).hexdigest()
