"""The account file: people with passwords, machines with tokens. Only hashes are kept.

{"users":  [{"name": "ann", "password": "scrypt$…", "roles": ["annotator"]}],
 "tokens": [{"name": "loop", "sha256": "…", "roles": ["manager"]}]}
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from atlas_core.atomic_writes import replace_file
from atlas_core.errors import ConfigurationError, Conflict
from atlas_core.frozen_model import FrozenModel
from atlas_core.review import UserName
from filelock import FileLock
from pydantic import BaseModel, Field, ValidationError

from atlas_review.auth.roles import Identity, Role

ModelT = TypeVar("ModelT", bound=BaseModel)

FIRST_USER: Final = "admin"

ACCOUNTS_FILE: Final = "accounts.json"

MIN_PASSWORD: Final = 10

_LOG_N, _BLOCK, _PARALLEL = 15, 8, 1
"""scrypt parameters: 32 MiB and about 0.1 s for one guess, as OWASP recommends."""


class User(FrozenModel):
    """A person with a password."""

    name: UserName
    password: str = Field(description="scrypt$log2(N)$r$p$salt$hash, the last two in base64.")
    roles: tuple[Role, ...]


class Token(FrozenModel):
    """A machine."""

    name: UserName
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="Of the token, which is random.")
    roles: tuple[Role, ...]


class AccountFile(FrozenModel):
    """Everything in the file."""

    users: tuple[User, ...] = ()
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True)
class _Read:
    stamp: tuple[int, int, int]
    content: AccountFile


class Accounts:
    """The accounts in one file, read again when it changes. Safe to share between threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read: _Read | None = None

    def create(self, password: str | None = None) -> str | None:
        """Make the file with one manager, unless it exists.

        Args:
            password: of `FIRST_USER`; None: one that nobody guesses.

        Returns:
            The password of `FIRST_USER`, which cannot be recovered later; None if the file
            existed.
        """
        password = password or secrets.token_urlsafe(12)
        with self._locked():
            if self.path.exists():
                return None
            first = User(name=FIRST_USER, password=hash_password(password), roles=(Role.MANAGER,))
            self._write(AccountFile(users=(first,)))
        return password

    def add_user(self, name: str, password: str, roles: tuple[Role, ...]) -> None:
        """Add a user, or replace the password and roles of an existing one."""
        if len(password) < MIN_PASSWORD:
            raise ConfigurationError(
                "the password is too short", expected=f"at least {MIN_PASSWORD} characters"
            )
        user = _validated(User, name=name, password=hash_password(password), roles=roles)
        with self._locked():
            now = self.content()
            others = tuple(known for known in now.users if known.name != name)
            _require_free(name, [token.name for token in now.tokens])
            self._write(now.model_copy(update={"users": (*others, user)}))

    def add_token(self, name: str, roles: tuple[Role, ...]) -> str:
        """Add a machine, or replace the token and roles of an existing one.

        Returns:
            The token, which cannot be recovered later.
        """
        secret = secrets.token_urlsafe(32)
        digest = hashlib.sha256(secret.encode()).hexdigest()
        token = _validated(Token, name=name, sha256=digest, roles=roles)
        with self._locked():
            now = self.content()
            others = tuple(known for known in now.tokens if known.name != name)
            _require_free(name, [user.name for user in now.users])
            self._write(now.model_copy(update={"tokens": (*others, token)}))
        return secret

    def remove(self, name: str) -> bool:
        """Remove a user or a machine; False if there was none. Sign-ins are not ended."""
        with self._locked():
            now = self.content()
            users = tuple(user for user in now.users if user.name != name)
            tokens = tuple(token for token in now.tokens if token.name != name)
            if len(users) + len(tokens) == len(now.users) + len(now.tokens):
                return False
            self._write(AccountFile(users=users, tokens=tokens))
        return True

    def by_password(self, name: str, password: str) -> User | None:
        """The user with this name and password, or None; takes equally long for unknown names."""
        user = next((user for user in self.content().users if user.name == name), None)
        good = verify_password(password, user.password if user else _NO_USER)
        return user if good and user else None

    def by_token(self, secret: str) -> Identity | None:
        """The machine with this token, or None."""
        digest = hashlib.sha256(secret.encode()).hexdigest()
        for token in self.content().tokens:
            if hmac.compare_digest(token.sha256, digest):
                return Identity(token.name, token.roles, "bearer")
        return None

    def content(self) -> AccountFile:
        """The current content of the file; empty if there is no file.

        Raises:
            ConfigurationError: it is not an account file.
        """
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            return AccountFile()
        stamp = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        read = self._read
        if read is None or read.stamp != stamp:
            read = self._read = _Read(stamp, _parsed(self.path))
        return read.content

    def _write(self, content: AccountFile) -> None:
        write_private(self.path, content.model_dump_json(indent=2).encode())

    def _locked(self) -> FileLock:
        """One writer at a time: what the file holds decides what is written."""
        return FileLock(self.path.with_name(f".{self.path.name}.lock"))


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read, all or nothing."""
    replace_file(path, data, mode=0o600)


def hash_password(password: str) -> str:
    """`password` hashed by scrypt with a fresh salt, as the file keeps it."""
    salt = secrets.token_bytes(16)
    parts = (_LOG_N, _BLOCK, _PARALLEL, _text(salt), _text(_scrypt(password, salt)))
    return "$".join(("scrypt", *(str(part) for part in parts)))


def verify_password(password: str, kept: str) -> bool:
    """Whether `kept` is a hash of `password`."""
    kind, *numbers, salt, digest = kept.split("$")
    if kind != "scrypt" or numbers != [str(_LOG_N), str(_BLOCK), str(_PARALLEL)]:
        return False
    return hmac.compare_digest(_scrypt(password, base64.b64decode(salt)), base64.b64decode(digest))


def _scrypt(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(
        password.encode(), salt=salt, n=1 << _LOG_N, r=_BLOCK, p=_PARALLEL, maxmem=1 << 26
    )


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


_NO_USER = f"scrypt${_LOG_N}${_BLOCK}${_PARALLEL}${_text(bytes(16))}${_text(bytes(64))}"
"""A hash that no password has; comparing with it takes as long as with a real one."""


def _parsed(path: Path) -> AccountFile:
    try:
        return AccountFile.model_validate_json(path.read_bytes())
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors(include_input=False)[0]["loc"])
        raise ConfigurationError(
            "the account file cannot be read", got=where or "no JSON", remedy=f"repair {path}"
        ) from None


def _validated(model: type[ModelT], **fields: object) -> ModelT:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        raise ConfigurationError(
            f"malformed {problem['loc'][0]}", expected=problem["msg"]
        ) from None


def _require_free(name: str, taken: list[str]) -> None:
    if name in taken:
        raise Conflict("a user and a machine cannot have one name", got=name)
