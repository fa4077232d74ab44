"""A real PostgreSQL for the test session: `postgresql_url` gives each test an empty database.

The binaries come from the pip package `pgserver` (extra `dev`), or from the machine where it is
missing. PostgreSQL refuses to run as root; for root it is started as the user `nobody`.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from ports import free_port

UNPRIVILEGED = "nobody"
START_TIMEOUT_S = "60"
PASSWORD = secrets.token_hex(8)


@dataclass(frozen=True)
class PostgresServer:
    """A running server on 127.0.0.1."""

    port: int

    def url(self, database: str) -> str:
        return f"postgresql://atlas:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement)


def program(name: str) -> Path:
    """A client program, as psql, that comes with the server."""
    binaries = _binaries()
    assert binaries is not None
    return binaries / "bin" / name


def _binaries() -> Path | None:
    package = importlib.util.find_spec("pgserver")
    if package is not None and package.origin is not None:
        return Path(package.origin).parent / "pginstall"
    return _machines_binaries()


def _machines_binaries() -> Path | None:
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = debian[-1] if debian else shutil.which("initdb")
    return Path(found).resolve().parents[1] if found else None


def _as_unprivileged() -> Mapping[str, Any]:
    """Arguments for subprocess that leave root's rights behind."""
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam(UNPRIVILEGED)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _readable(binaries: Path, folder: Path) -> Path:
    """`binaries`, or a copy in `folder` where root keeps them from other users."""
    initdb = binaries / "bin" / "initdb"
    probe = subprocess.run(["test", "-x", str(initdb)], check=False, cwd="/", **_as_unprivileged())
    if probe.returncode == 0:
        return binaries
    package = binaries.parent
    libraries = package.with_name(f"{package.name}.libs")  # where a wheel keeps them
    for part in (package, libraries):
        if part.is_dir():
            shutil.copytree(part, folder / part.name, symlinks=True)
    return folder / package.name / binaries.name


@contextmanager
def running_postgres(
    options: Sequence[str] = (), owned: Sequence[Path] = (), *, tls: bool = False
) -> Iterator[PostgresServer]:
    """A server in a folder of its own, stopped and removed at the end.

    Args:
        options: further words of its command line.
        owned: files that its user alone may read, in a folder that it may enter.
        tls: a server that was built with TLS, which `pgserver` is not.
    """
    binaries = _machines_binaries() if tls else _binaries()
    if binaries is None:
        pytest.skip(f"NO POSTGRESQL{' WITH TLS' if tls else ''}: install postgresql")
    rights = _as_unprivileged()
    # Not under pytest's folder, which only its owner can enter.
    with tempfile.TemporaryDirectory(prefix="atlasloop-postgres-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        programs = _readable(binaries, folder) / "bin"
        data = folder / "data"
        data.mkdir()
        password_file = folder / "password"
        password_file.write_text(PASSWORD)
        if rights:
            for path in (data, password_file, *owned):
                shutil.chown(path, user=rights["user"], group=rights["group"])
        server = PostgresServer(free_port())

        def run(*command: str) -> None:
            subprocess.run(
                command, check=True, cwd="/", stdout=subprocess.DEVNULL, timeout=120, **rights
            )

        control = str(programs / "pg_ctl")
        run(
            str(programs / "initdb"), "--pgdata", str(data), "--username", "atlas",
            "--pwfile", str(password_file), "--auth", "scram-sha-256",
            "--encoding", "UTF8", "--locale", "C", "--no-sync",
        )  # fmt: skip
        words = (
            f"-p {server.port}", "-c listen_addresses=127.0.0.1", "-c unix_socket_directories=",
            "-c fsync=off", *options,
        )  # fmt: skip
        run(
            control, "--pgdata", str(data), "--wait", "--timeout", START_TIMEOUT_S,
            "--log", str(data / "log"), "-o", " ".join(words), "start",
        )  # fmt: skip
        try:
            yield server
        finally:
            run(control, "--pgdata", str(data), "--wait", "--mode", "immediate", "stop")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One PostgreSQL for the session (one per worker of pytest-xdist)."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def postgresql_url(postgres_server: PostgresServer) -> Iterator[str]:
    """Address of an empty database of its own."""
    name = f"atlas_{secrets.token_hex(6)}"
    postgres_server.execute(f"CREATE DATABASE {name}")
    yield postgres_server.url(name)
    postgres_server.execute(f"DROP DATABASE {name} WITH (FORCE)")
