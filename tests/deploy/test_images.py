"""Dockerfiles by their text, and for real what runs inside: entry point and health check."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from rendered_chart import REPOSITORY, program

FOLDER = REPOSITORY / "deploy" / "docker"
ROLES = ("attention", "review", "flows", "trainer", "triton-cpu")
ENTRYPOINT = FOLDER / "entrypoint.sh"

every_role = pytest.mark.parametrize("role", ROLES)


def dockerfile(role: str) -> str:
    return (FOLDER / f"{role}.Dockerfile").read_text()


def test_every_role_has_one() -> None:
    assert {path.name for path in FOLDER.glob("*Dockerfile")} == {f"{r}.Dockerfile" for r in ROLES}


def test_linters_have_no_word_to_say() -> None:
    files = [str(FOLDER / f"{role}.Dockerfile") for role in ROLES]
    scripts = [str(ENTRYPOINT), str(REPOSITORY / "deploy" / "compose" / "databases.sh")]
    for command in ([program("hadolint"), *files], [program("shellcheck"), *scripts]):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stdout) == (0, "")


@every_role
def test_the_image_is_small_safe_and_told_apart(role: str) -> None:
    text = dockerfile(role)
    final = text[text.index("AS final") :]
    assert re.search(r"^USER 10001:10001$", final, re.M)
    assert "USER root" not in text
    assert "HEALTHCHECK" in final
    assert "pip install" not in final, "tools for building stay in the first stage"
    for label in ("title", "description", "version", "revision", "licenses"):
        assert f"org.opencontainers.image.{label}=" in final
    assert "FROM scratch AS sbom" in text
    assert "--no-cache-dir" in text or "PIP_NO_CACHE_DIR=1" in text
    assert ":latest" not in text


@every_role
def test_it_copies_what_is_there_and_sent(role: str) -> None:
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    sent = [line.removeprefix("!") for line in ignored if line.startswith("!")]
    for line in re.findall(r"^COPY (?!--from)(.+)$", dockerfile(role), re.M):
        for source in line.split()[:-1]:
            assert (REPOSITORY / source).exists(), source
            assert any(Path(source).is_relative_to(place) for place in sent), source


@every_role
def test_it_installs_extras_that_exist(role: str) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    extras = set(project["project"]["optional-dependencies"])
    for group in re.findall(r'"\.\[([a-z,]+)\]"', dockerfile(role)):
        wanted = set(group.split(","))
        # `review` comes with the service itself.
        assert wanted - {"review"} <= extras
        assert ("models" in wanted) == (role == "trainer"), "torch belongs into the trainer alone"


def enter(variables: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ENTRYPOINT), *command], env={"PATH": os.environ["PATH"], **variables},
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip


def test_secrets_come_from_files_and_nothing_else_changes(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text('it\'s $HOME "quoted" `x`\n')
    variables = {"PGPASSWORD__FILE": str(secret), "SSL_CERT_FILE": "/etc/ca.crt"}
    done = enter(variables, sys.executable, "-c", "import os; print(dict(os.environ))")
    found = eval(done.stdout)
    assert found["PGPASSWORD"] == 'it\'s $HOME "quoted" `x`'
    assert found["SSL_CERT_FILE"] == "/etc/ca.crt"
    assert "SSL_CERT" not in found
    assert "PGPASSWORD__FILE" not in found


@pytest.mark.parametrize("how", ["missing", "empty", "a folder"])
def test_a_secret_that_is_not_there_stops_at_once(tmp_path: Path, how: str) -> None:
    secret = tmp_path / "password"
    if how == "empty":
        secret.write_text("\n")
    elif how == "a folder":
        secret.mkdir()
    done = enter({"PGPASSWORD__FILE": str(secret)}, "echo", "started")
    assert done.returncode != 0
    assert "started" not in done.stdout
    if how != "a folder":
        assert "the secret PGPASSWORD" in done.stderr
        assert str(secret) in done.stderr


def test_the_program_takes_the_place_of_the_entry_point() -> None:
    """So that it gets the signals, and its exit status is the container's."""
    done = enter({}, "sh", "-c", "exit 7")
    assert done.returncode == 7
    assert enter({}, "sh", "-c", "ps -o comm= -p $$").stdout.strip() in ("sh", "ps")


def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(FOLDER / "healthcheck.py"), *arguments],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip


@pytest.fixture
def health_service() -> Iterator[tuple[str, health.HealthServicer]]:
    server = grpc.server(ThreadPoolExecutor(2))
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", servicer
    server.stop(None).wait()


def test_grpc_health(health_service: tuple[str, health.HealthServicer]) -> None:
    address, servicer = health_service
    status = health_pb2.HealthCheckResponse
    servicer.set("", status.NOT_SERVING)
    refused = ask("grpc", address)
    assert (refused.returncode, refused.stdout) == (1, f"{address}: NOT_SERVING\n")
    servicer.set("", status.SERVING)
    assert ask("grpc", f"dns:///{address}").returncode == 0
    assert ask("grpc", "127.0.0.1:1").returncode == 1


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/ready" else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return None


def test_http_health() -> None:
    with HTTPServer(("127.0.0.1", 0), _Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        where = f"http://127.0.0.1:{server.server_port}"
        assert ask("http", f"{where}/ready").returncode == 0
        away = ask("http", f"{where}/not-ready")
        assert (away.returncode, "503" in away.stdout) == (1, True)
        server.shutdown()
        thread.join()
    assert ask("http", where).returncode == 1
    assert ask("nonsense").returncode == 2
