"""Processes in surroundings that cannot work: they say so and end, or wait and are not ready."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import sqlalchemy as sa
from atlas_attention.server.status import status_of
from atlas_core.catalog import Catalog, tables
from atlas_core.errors import ConfigurationError
from atlas_core.store import CaseStore
from grpc_health.v1 import health_pb2, health_pb2_grpc
from ports import free_port

WITHOUT_ROOM = (
    "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); "
    "sys.argv = sys.argv[1:]; runpy.run_module(sys.argv[0], run_name='__main__')"
)
"""A process that can write no byte to any file, as on a full disk."""


def outer() -> dict[str, str]:
    """This process's environment, but for what would configure ours."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("ATLAS", "PREFECT"))}


def run(command: list[str], variables: dict[str, str], *, room: bool = True) -> tuple[int, str]:
    """Exit status and stderr of a program that is expected to end by itself."""
    start = ["-m", *command] if room else ["-c", WITHOUT_ROOM, *command]
    done = subprocess.run(
        [sys.executable, *start], env={**outer(), **variables},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Bound, not listening: connections are refused."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield probe.getsockname()[1]


@dataclass(frozen=True)
class Program:
    """One process of a deployment.

    Attributes:
        module: what `python -m` starts, and its arguments.
        status: with which it ends when it cannot work.
    """

    module: str
    arguments: tuple[str, ...]
    status: int


ATTENTION = Program("atlas_attention", (), 2)
REVIEW = Program("atlas_review", (), 2)
FLOWS = Program("atlas_flows.serve", (), 1)
MIGRATE = Program("atlas_flows.cli", ("migrate",), 2)
REPOSITORY = Program("atlas_embedded.model_repository", ("{place}", "--target=cpu"), 2)
PROGRAMS = (ATTENTION, REVIEW, FLOWS, MIGRATE, REPOSITORY)


def named(program: Program) -> str:
    return program.module


def variables(folder: Path, place: Path, port: int) -> dict[str, str]:
    """Of every program: a catalog in `folder`, what is written in `place`, the rest at `port`."""
    catalog = f"sqlite:///{folder}/catalog.sqlite"
    return {
        "ATLAS_ATTENTION_LISTEN": f"127.0.0.1:{free_port()}",
        "ATLAS_ATTENTION_METRICS_LISTEN": "",
        "ATLAS_ATTENTION_TRITON": f"127.0.0.1:{port}",
        "ATLAS_ATTENTION_STORE": str(place),
        "ATLAS_REVIEW_LISTEN": f"127.0.0.1:{free_port()}",
        "ATLAS_REVIEW_STORE": str(place),
        "ATLAS_REVIEW_HOME": str(folder / "review"),
        "ATLAS_REVIEW_CATALOG_URL": catalog,
        "ATLASLOOP_HOME": str(folder),
        "ATLASLOOP_STORE": str(place),
        "ATLASLOOP_CATALOG_URL": catalog,
        "ATLASLOOP_PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
    }


def ends(program: Program, environment: dict[str, str], *, room: bool = True) -> str:
    """What `program` says when it ends by itself, with its status and without a traceback."""
    arguments = [a.format(place=environment["ATLASLOOP_STORE"]) for a in program.arguments]
    status, said = run([program.module, *arguments], environment, room=room)
    assert status == program.status, said
    assert "Traceback" not in said
    # Messages on a terminal are broken into lines.
    return " ".join(said.split())


WRITERS = (ATTENTION, REVIEW, FLOWS, REPOSITORY)
READERS_OF_THE_CATALOG = (REVIEW, FLOWS, MIGRATE)


@pytest.mark.parametrize("program", WRITERS, ids=named)
@pytest.mark.parametrize("what", ["not mounted", "read-only", "full"])
def test_no_place_to_write(program: Program, what: str, tmp_path: Path, closed_port: int) -> None:
    place = tmp_path / "store"
    if what == "not mounted":
        place.write_text("a file where a volume should be mounted")
    elif what == "read-only":
        # A file system that takes no folder from anybody, root included.
        place = Path("/sys/atlasloop-store")
    else:
        place.mkdir()
    said = ends(program, variables(tmp_path, place, closed_port), room=what != "full")
    assert f"{place} cannot be written to" in said
    assert "check that its volume is mounted" in said
    if what == "full":
        assert [path for path in place.rglob("*") if path.is_file() and path.stat().st_size] == []


@pytest.mark.parametrize("program", READERS_OF_THE_CATALOG, ids=named)
def test_no_database(program: Program, tmp_path: Path, closed_port: int) -> None:
    url = f"postgresql://atlasloop:verysecret@127.0.0.1:{closed_port}/atlasloop"
    environment = variables(tmp_path, tmp_path / "store", closed_port)
    environment |= {"ATLASLOOP_CATALOG_URL": url, "ATLAS_REVIEW_CATALOG_URL": url}
    said = ends(program, environment)
    assert f"127.0.0.1:{closed_port}" in said
    assert "does not answer" in said
    assert "verysecret" not in said


@pytest.mark.parametrize("program", READERS_OF_THE_CATALOG, ids=named)
def test_a_catalog_of_a_newer_version(program: Program, tmp_path: Path, closed_port: int) -> None:
    environment = variables(tmp_path, tmp_path / "store", closed_port)
    url = environment["ATLASLOOP_CATALOG_URL"]
    with Catalog.open(url) as catalog, catalog.transaction(write=True) as connection:
        newer = sa.text(f"UPDATE {tables.VERSION_TABLE} SET version_num = '9999'")
        connection.execute(newer)
    assert "newer than this version" in ends(program, environment)


@pytest.mark.parametrize("what", ["not mounted", "read-only"])
def test_review_without_a_place_for_its_accounts(
    what: str, tmp_path: Path, closed_port: int
) -> None:
    home = tmp_path / "review" if what == "not mounted" else Path("/sys/atlasloop-review")
    if what == "not mounted":
        home.write_text("a file where a volume should be mounted")
    environment = variables(tmp_path, tmp_path / "store", closed_port)
    said = ends(REVIEW, environment | {"ATLAS_REVIEW_HOME": str(home)})
    assert f"{home} cannot be read and written" in said


def test_review_with_a_secret_that_is_too_short(tmp_path: Path, closed_port: int) -> None:
    environment = variables(tmp_path, tmp_path / "store", closed_port)
    said = ends(REVIEW, environment | {"ATLAS_REVIEW_SECRET": "password"})
    assert "ATLAS_REVIEW_SECRET" in said
    assert "password" not in said


def test_flows_without_prefect(tmp_path: Path, closed_port: int) -> None:
    said = ends(FLOWS, variables(tmp_path, tmp_path / "store", closed_port))
    assert f"http://127.0.0.1:{closed_port}/api does not answer" in said


def test_attention_without_triton_waits_and_says_so(tmp_path: Path, closed_port: int) -> None:
    """Triton may come later: the process stays, is not ready, and its log says what is missing."""
    environment = variables(tmp_path, tmp_path / "store", closed_port)
    with subprocess.Popen(
        [sys.executable, "-m", "atlas_attention"],
        env=outer() | environment, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        said = next(line for line in process.stderr if "not serving" in line)
        with grpc.insecure_channel(environment["ATLAS_ATTENTION_LISTEN"]) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            answer = health.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True)
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert process.poll() is None
        process.terminate()
        assert process.wait() == 0
    assert "model server" in said


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_disk_that_fills_up_later_is_told_to_the_client(code: int) -> None:
    """Unavailable: clients wait and try again, as after any other outage."""
    outcome = status_of(OSError(code, os.strerror(code)))
    assert outcome.code is grpc.StatusCode.UNAVAILABLE
    assert os.strerror(code) in outcome.message
    assert outcome.error_id is None


def test_a_usable_store_keeps_no_trace(tmp_path: Path) -> None:
    store = CaseStore(tmp_path / "store")
    store.require_usable()
    assert [path for path in store.root.rglob("*") if path.is_file()] == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_store_without_rights(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir(mode=0o500)
    with pytest.raises(ConfigurationError, match="cannot be written to"):
        CaseStore(tmp_path / "store").require_usable()
