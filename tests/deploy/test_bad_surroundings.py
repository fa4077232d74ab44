"""Processes in surroundings that cannot work: they say so and end, or wait and are not ready."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import sqlalchemy as sa
from atlas_attention.status import outcome_of
from atlas_core import catalog_tables
from atlas_core.case_store import CaseStore
from atlas_core.catalog import Catalog
from atlas_core.errors import ConfigurationError
from triton_server import free_port

WITHOUT_ROOM = (
    "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); "
    "sys.argv = sys.argv[1:]; runpy.run_module(sys.argv[0], run_name='__main__')"
)
"""A process that can write no byte to any file, as on a full disk."""


def run(module: str, variables: dict[str, str], *, room: bool = True) -> tuple[int, str]:
    """Exit status and stderr of a program that is expected to end by itself."""
    start = ["-m", module] if room else ["-c", WITHOUT_ROOM, module]
    outer = {k: v for k, v in os.environ.items() if not k.startswith(("ATLAS", "PREFECT"))}
    done = subprocess.run(
        [sys.executable, *start], env={**outer, **variables},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Bound, not listening: connections are refused."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield probe.getsockname()[1]


def attention(tmp_path: Path) -> dict[str, str]:
    return {
        "ATLAS_ATTENTION_LISTEN": f"127.0.0.1:{free_port()}",
        "ATLAS_ATTENTION_METRICS_LISTEN": "",
        "ATLAS_ATTENTION_STORE": str(tmp_path / "store"),
    }


def test_attention_without_a_place_to_write(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where a volume should be mounted")
    status, said = run("atlas_attention", attention(tmp_path))
    assert status == 2
    assert "cannot be written to" in said
    assert "check that its volume is mounted" in said
    assert "Traceback" not in said


def test_attention_on_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    status, said = run("atlas_attention", attention(tmp_path), room=False)
    assert status == 2
    assert "cannot be written to" in said
    assert list((tmp_path / "store").rglob("probe")) == []


def flows(tmp_path: Path, port: int) -> dict[str, str]:
    return {
        "ATLASLOOP_HOME": str(tmp_path),
        "ATLASLOOP_STORE": str(tmp_path / "store"),
        "ATLASLOOP_PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
    }


def test_flows_without_a_database(tmp_path: Path, closed_port: int) -> None:
    url = f"postgresql://atlasloop:verysecret@127.0.0.1:{closed_port}/atlasloop"
    status, said = run(
        "atlas_flows.serve", {**flows(tmp_path, closed_port), "ATLASLOOP_CATALOG_URL": url}
    )
    assert status == 1
    assert f"127.0.0.1:{closed_port}" in said
    assert "does not answer" in said
    assert "verysecret" not in said
    assert "Traceback" not in said


def test_flows_with_a_catalog_of_another_version(tmp_path: Path, closed_port: int) -> None:
    url = f"sqlite:///{tmp_path}/catalog.sqlite"
    with Catalog.open(url) as catalog, catalog.transaction(write=True) as connection:
        newer = sa.text(f"UPDATE {catalog_tables.VERSION_TABLE} SET version_num = '9999'")
        connection.execute(newer)
    for module in ("atlas_flows.serve",):
        status, said = run(module, {**flows(tmp_path, closed_port), "ATLASLOOP_CATALOG_URL": url})
        assert status == 1
        assert "newer than this version" in said


def test_flows_without_prefect(tmp_path: Path, closed_port: int) -> None:
    status, said = run("atlas_flows.serve", flows(tmp_path, closed_port))
    assert status == 1
    assert f"http://127.0.0.1:{closed_port}/api does not answer" in said


def test_flows_without_a_place_to_write(tmp_path: Path, closed_port: int) -> None:
    (tmp_path / "store").write_text("")
    status, said = run("atlas_flows.serve", flows(tmp_path, closed_port))
    assert status == 1
    assert "cannot be written to" in said


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_disk_that_fills_up_later_is_told_to_the_client(code: int) -> None:
    """Unavailable: clients wait and try again, as after any other outage."""
    outcome = outcome_of(OSError(code, os.strerror(code)))
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
