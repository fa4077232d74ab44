"""Builds every image, brings the compose file up and runs the demo against it, by a real engine.

    python deploy/check_compose.py [--build-arg NAME=VALUE] [--pip-conf FILE] [--host-network]
                                   [--no-build] [--keep]

Where Docker Hub or PyPI cannot be reached, ``--build-arg PYTHON_IMAGE=…`` names another base image,
``--pip-conf`` an index of your own, and the variables ``ATLASLOOP_POSTGRESQL_IMAGE`` and
``ATLASLOOP_PROXY_IMAGE`` the other two. Prints a transcript: sizes of the images, what the stack
answered. Its project is ``atlasloop-check``, its ports 18930, 18920 and 18943; all of it but the
images is removed again. docs/explanation/compose-run.md shows a run.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import secrets
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
COMPOSE = REPOSITORY / "deploy" / "compose" / "compose.yaml"
PROJECT = "atlasloop-check"
REGISTRY = "atlasloop-check.invalid"
"""No registry: a missing image cannot be pulled by accident."""

VERSION = "check"
ROLES = ("attention", "review", "flows", "trainer", "triton-cpu")
REVIEW, PREFECT, TLS = 18930, 18920, 18943
REVIEW_HOST, PREFECT_HOST = "review.localhost", "prefect.localhost"
PASSWORD_FILES = (
    "catalog_password", "review_password", "prefect_password", "review_secret", "triton_control",
)  # fmt: skip
CASES = 4
HARDENED = (
    "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges:true", "--network=none",
    "--tmpfs=/tmp:mode=1777",
)  # fmt: skip

INSIDE = """
import importlib.util as u, json, os, pathlib
try:
    pathlib.Path("/written").touch(); writable = True
except OSError:
    writable = False
print(json.dumps({"user": os.getuid(), "root is writable": writable,
    "torch": bool(u.find_spec("torch")), "pip": bool(u.find_spec("pip"))}))
"""

CONTROL = """
import tritonclient.grpc as t
client = t.InferenceServerClient("triton:8001")
print("models that infer:", sorted({m.name for m in client.get_inference_statistics().model_stats}))
try:
    client.unload_model("demo_unet")
    print("attention may unload models")
except t.InferenceServerException as error:
    print("unload refused:", error.message().split(",")[0])
"""


class CheckFailed(Exception):
    """What was expected did not happen."""


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    build: tuple[str, ...]
    do_build: bool
    keep: bool


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def require(true: bool, otherwise: str) -> None:
    """Raises `CheckFailed` unless `true`."""
    if not true:
        raise CheckFailed(otherwise)


def run(command: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    """stdout; raises `CheckFailed` with the end of what it said if it fails."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **(env or {})}
    )
    if done.returncode != 0:
        said = (done.stdout + done.stderr)[-3000:]
        raise CheckFailed(f"{' '.join(command[:6])} … exited with {done.returncode}:\n{said}")
    return done.stdout


def image(role: str) -> str:
    return f"{REGISTRY}/atlasloop/{role}:{VERSION}"


# --- images ---


def build(role: str, options: Sequence[str]) -> float:
    """Seconds that it took."""
    began = time.monotonic()
    dockerfile = f"deploy/docker/{role}.Dockerfile"
    run(
        ["docker", "build", *options, "--file", str(REPOSITORY / dockerfile), "--tag", image(role),
         str(REPOSITORY)],
        {"DOCKER_BUILDKIT": "1"},
    )  # fmt: skip
    return time.monotonic() - began


def check_image(role: str) -> str:
    """One line about an image: what `docker image inspect` and a hardened container say."""
    (told,) = json.loads(run(["docker", "image", "inspect", image(role)]))
    config = told["Config"]
    require(config["User"] == "10001:10001", f"{role} runs as {config['User']}")
    require("Healthcheck" in config, f"{role} has no health check")
    python = ["--entrypoint=python", image(role), "-c", INSIDE]
    inside = json.loads(run(["docker", "run", "--rm", *HARDENED, *python]))
    wanted = {
        "user": 10001, "root is writable": False, "torch": role == "trainer", "pip": False,
    }  # fmt: skip
    require(inside == wanted, f"{role}: expected {wanted}, got {inside}")
    return f"{role:10} {told['Size'] / 1e6:7.0f} MB"


def check_missing_secret() -> str:
    """What a container says whose secret is not mounted; it must end at once."""
    done = subprocess.run(
        ["docker", "run", "--rm", *HARDENED, "--env=PGPASSWORD__FILE=/run/secrets/x",
         image("review")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    require(done.returncode == 2, f"review without its secret exited with {done.returncode}")
    return done.stderr.strip()


# --- the stack ---


def make_certificate(folder: Path) -> Path:
    """A certificate for both names, signed by itself, that the proxy's own user may read."""
    folder.mkdir()
    certificate, key = folder / "tls.crt", folder / "tls.key"
    run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1",
         "-subj", f"/CN={REVIEW_HOST}",
         "-addext", f"subjectAltName=DNS:{REVIEW_HOST},DNS:{PREFECT_HOST}",
         "-keyout", str(key), "-out", str(certificate)],
    )  # fmt: skip
    for file in (certificate, key):
        file.chmod(0o444)
    return certificate


class Stack:
    """The compose file under a project of its own, with secrets made for it."""

    def __init__(self, folder: Path) -> None:
        self.import_folder, backup = folder / "import", folder / "backup"
        landing = folder / "landing"
        for written in (self.import_folder, backup, landing):
            written.mkdir()
            written.chmod(0o777)  # user 10001 writes there; the parent is ours alone
        self._tls = folder / "tls"
        self.certificate = make_certificate(self._tls)
        self._secrets = folder / "secrets"
        self._secrets.mkdir()
        self.auth = f"atlas:{secrets.token_hex(16)}"
        for name in PASSWORD_FILES:
            self._write_secret(name, secrets.token_hex(32))
        self._write_secret("prefect_auth", self.auth)
        self._env = {
            "ATLASLOOP_REGISTRY": REGISTRY,
            "ATLASLOOP_VERSION": VERSION,
            "ATLASLOOP_SECRETS": str(self._secrets),
            "ATLASLOOP_IMPORT": str(self.import_folder),
            "ATLASLOOP_LANDING": str(landing),
            "ATLASLOOP_BACKUP": str(backup),
            "ATLASLOOP_TLS": str(self._tls),
            "ATLASLOOP_TLS_PORT": str(TLS),
            "ATLASLOOP_REVIEW_HOST": REVIEW_HOST,
            "ATLASLOOP_REVIEW_URL": f"https://{REVIEW_HOST}:{TLS}",
            "ATLASLOOP_PREFECT_HOST": PREFECT_HOST,
            "ATLASLOOP_REVIEW_PORT": str(REVIEW),
            "ATLASLOOP_PREFECT_PORT": str(PREFECT),
        }

    def _write_secret(self, name: str, value: str) -> None:
        path = self._secrets / name
        path.write_text(f"{value}\n")
        path.chmod(0o444)

    def compose(self, *arguments: str) -> str:
        program = Path(sys.executable).parent / "docker-compose"
        command = [str(program)] if program.exists() else ["docker", "compose"]
        return run(
            [*command, "--file", str(COMPOSE), "--project-name", PROJECT, "--profile", "tls",
             *arguments],
            self._env,
        )  # fmt: skip

    def inside(self, service: str, *command: str, env: Sequence[str] = ()) -> str:
        """stdout of a program beside the service's own, with the service's secrets."""
        variables = [f"--env={one}" for one in env]
        return self.compose("exec", "-T", *variables, service, "entrypoint.sh", *command)

    def containers(self) -> dict[str, dict[str, Any]]:
        """What the engine says of each container, by service."""
        ids = self.compose("ps", "--all", "--quiet").split()
        found = json.loads(run(["docker", "inspect", *ids]))
        return {one["Config"]["Labels"]["com.docker.compose.service"]: one for one in found}


def check_containers(stack: Stack) -> str:
    """One line per service: health or exit status, after checking user and file system."""
    lines = []
    for name, told in sorted(stack.containers().items()):
        state = told["State"]
        require(told["HostConfig"]["ReadonlyRootfs"], f"{name} may write to its root file system")
        user = told["Config"]["User"]
        own = {"volumes": "0:0", "proxy": "101:101"}.get(name, "10001:10001")
        require(user == own, f"{name} runs as {user}")
        if state["Running"]:
            how = state["Health"]["Status"]
            require(how == "healthy", f"{name} is {how}")
        else:
            how = f"exited with {state['ExitCode']}"
            require(state["ExitCode"] == 0, f"{name} {how}")
        lines.append(f"{name:16} {how}")
    return "\n".join(lines)


def fetch(url: str, auth: str | None = None) -> tuple[int, Mapping[str, str]]:
    """Status and headers."""
    request = urllib.request.Request(url, headers={"Accept": "text/html"})  # noqa: S310
    if auth:
        request.add_header("Authorization", f"Basic {base64.b64encode(auth.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return answer.status, dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers)


def check_doors(stack: Stack) -> str:
    """What can be reached from this machine, and by whom."""
    review, _ = fetch(f"http://127.0.0.1:{REVIEW}/readyz")
    prefect = f"http://127.0.0.1:{PREFECT}"
    dashboard, headers = fetch(f"{prefect}/dashboard")
    policy = headers.get("Content-Security-Policy", headers.get("content-security-policy", ""))
    stranger, _ = fetch(f"{prefect}/api/admin/version")
    operator, _ = fetch(f"{prefect}/api/admin/version", stack.auth)
    require(review == 200, f"review is not ready: {review}")
    require(policy.startswith("connect-src 'self'"), f"Prefect's policy is {policy!r}")
    require(dashboard == 200, f"Prefect serves no UI: {dashboard}")
    require((stranger, operator) == (401, 200), f"Prefect answered {stranger} and {operator}")
    return (
        f"review /readyz {review}; Prefect's UI {dashboard}; its API without password {stranger}, "
        f"with it {operator}; "
        f"Content-Security-Policy: {policy}"
    )


def fetch_by_tls(host: str, path: str, authority: Path) -> tuple[int, Mapping[str, str]]:
    """Status and headers, by the proxy, whose certificate is checked."""
    context = ssl.create_default_context(cafile=str(authority))
    with (
        socket.create_connection(("127.0.0.1", TLS), 30) as plain,
        context.wrap_socket(plain, server_hostname=host) as channel,
    ):
        connection = http.client.HTTPConnection(host, TLS)
        connection.sock = channel
        connection.request("GET", path, headers={"Accept": "text/html"})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}


def check_proxy(stack: Stack) -> str:
    """Review and Prefect by TLS; any other name gets nothing."""
    review, headers = fetch_by_tls(REVIEW_HOST, "/readyz", stack.certificate)
    page, _ = fetch_by_tls(REVIEW_HOST, "/", stack.certificate)
    stranger, _ = fetch_by_tls(PREFECT_HOST, "/api/admin/version", stack.certificate)
    _, dashboard = fetch_by_tls(PREFECT_HOST, "/dashboard", stack.certificate)
    policy = dashboard.get("content-security-policy", "")
    require((review, page) == (200, 200), f"review answered {review} and {page} by the proxy")
    require("strict-transport-security" in headers, "the proxy asks nobody to stay with TLS")
    require(stranger == 401, f"Prefect let a stranger in by the proxy: {stranger}")
    require(policy == f"connect-src 'self' wss://{PREFECT_HOST}", f"the policy is {policy!r}")
    return f"by TLS: review {review}, its page {page}; Prefect without password {stranger}"


def check_walls(stack: Stack) -> str:
    """What attention and review may not: reach what is not theirs, or control the models."""
    for service, place in (
        ("attention", ("postgresql", 5432)),
        ("review", ("prefect", 4200)),
        ("review", ("triton", 8001)),
    ):
        question = f"import socket; socket.create_connection({place}, 5)"
        try:
            stack.inside(service, "python", "-c", question)
        except CheckFailed:
            continue
        raise CheckFailed(f"{service} reaches {place[0]}")
    said = stack.inside("attention", "python", "-c", CONTROL).strip()
    require("unload refused" in said, said)
    return f"attention does not reach the database, nor review Prefect or Triton\n{said}"


def demo(stack: Stack) -> None:
    """Phantoms in, a priority list out: by the command, then by a run that the worker picks up."""
    folder = f"{stack.import_folder}:/import"
    run(
        ["docker", "run", "--rm", *HARDENED, "--volume", folder, image("flows"),
         "atlasloop", "phantoms", "/import", "--cases", str(CASES)],
    )  # fmt: skip
    for command in (
        ("import", "/import", "--dataset", "phantoms"),
        ("score", "--limit", str(CASES - 1)),
    ):
        say(f"$ atlasloop {' '.join(command)}")
        say(stack.inside("flows", "atlasloop", *command).strip())
    say("$ prefect deployment run score/score --watch")
    said = stack.inside("flows", "prefect", "deployment", "run", "score/score", "--watch")
    say(said.strip().splitlines()[-1])
    say("$ atlasloop ranking")
    say(stack.inside("flows", "atlasloop", "ranking").strip())
    ranked = json.loads(stack.inside("flows", "atlasloop", "ranking", "--json"))
    require(ranked["cases"] == CASES, f"{ranked['cases']} of {CASES} cases are ranked")


def check_backup(stack: Stack) -> None:
    """A backup of the running stack, restored into a second, empty database."""
    say("$ atlasloop backup /backup/one")
    say(stack.inside("flows", "atlasloop", "backup", "/backup/one").strip())
    create = ("createdb", "--username=postgres", "--owner=atlasloop", "restored")
    stack.compose("exec", "-T", "postgresql", *create)
    second = "ATLASLOOP_CATALOG_URL=postgresql://atlasloop@postgresql:5432/restored?sslmode=disable"
    say("$ atlasloop restore /backup/one    # into a second database")
    say(stack.inside("flows", "atlasloop", "restore", "/backup/one", env=[second]).strip())
    ranking = ("flows", "atlasloop", "ranking", "--json")
    before, after = stack.inside(*ranking), stack.inside(*ranking, env=[second])
    require(before == after, "the restored catalog ranks otherwise")
    say("the restored catalog gives the same ranking")


def check_stack(folder: Path, keep: bool) -> None:
    """Up, look, demo, down."""
    stack = Stack(folder)
    try:
        began = time.monotonic()
        try:
            stack.compose("up", "--detach", "--wait")
        except CheckFailed:
            say(stack.compose("logs", "--no-color", "--tail", "40"))
            raise
        say(f"$ docker compose up --detach --wait    # {time.monotonic() - began:.0f} s")
        say(check_containers(stack))
        say(check_doors(stack))
        say(check_proxy(stack))
        say(check_walls(stack))
        demo(stack)
        check_backup(stack)
    finally:
        if not keep:
            stack.compose("down", "--volumes", "--timeout", "20")


def read_options(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--pip-conf", type=Path, help="pip's configuration for your own index")
    parser.add_argument("--host-network", action="store_true", help="build in the host's network")
    parser.add_argument("--no-build", action="store_true", help="check the images of the last run")
    parser.add_argument("--keep", action="store_true", help="leave the stack running")
    given = parser.parse_args(arguments)
    build = [f"--build-arg={one}" for one in given.build_arg]
    if given.pip_conf:
        build.append(f"--secret=id=pip.conf,src={given.pip_conf.absolute()}")
    if given.host_network:
        build.append("--network=host")
    return Options(tuple(build), not given.no_build, given.keep)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 2 where there is no container engine."""
    options = read_options(arguments)
    try:
        engine = run(["docker", "version", "--format", "{{.Server.Version}}"]).strip()
    except (CheckFailed, FileNotFoundError):
        sys.stderr.write("error: no container engine answers; nothing was checked\n")
        return 2
    say(f"container engine {engine}")
    try:
        for role in ROLES:
            seconds = build(role, options.build) if options.do_build else None
            built = "" if seconds is None else f"  built in {seconds:.0f} s"
            say(f"{check_image(role)}{built}")
        say(check_missing_secret())
        with tempfile.TemporaryDirectory(prefix="atlasloop-compose-") as name:
            check_stack(Path(name), options.keep)
    except CheckFailed as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    say("compose: everything as it should be")
    return 0


if __name__ == "__main__":
    sys.exit(main())
