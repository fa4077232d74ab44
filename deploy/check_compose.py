"""Builds every image, brings the compose file up and runs the demo against it, by a real engine.

    python deploy/check_compose.py [--build-arg NAME=VALUE] [--pip-conf FILE] [--host-network]
                                   [--no-build] [--no-trainer] [--before COMMIT] [--keep]

What is brought up has two Tritons, two attention services, TLS between the containers and a role
of PostgreSQL for each service. In it the demo runs, a backup is restored, and every container is
killed once while cases are scored. With ``--before`` the release of that commit is built as well:
it is brought up, upgraded to this one with its data in place, and brought back.

Where Docker Hub or PyPI cannot be reached, ``--build-arg PYTHON_IMAGE=…`` names another base image,
``--pip-conf`` an index of your own, and the variables ``ATLASLOOP_POSTGRESQL_IMAGE``,
``ATLASLOOP_PROXY_IMAGE`` and ``ATLASLOOP_ORTHANC_IMAGE`` the other three. Prints a transcript:
sizes of the images, what the stack answered. Its project is ``atlasloop-check``, its ports 18911,
18920, 18930, 18942 and 18943; all of it but the images is removed again.
docs/explanation/compose-run.md shows a run.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from compose_pacs import check_pacs
from compose_stack import (
    HARDENED,
    PREFECT,
    PREFECT_HOST,
    REVIEW,
    REVIEW_HOST,
    THIS,
    TLS,
    CheckFailed,
    Release,
    Stack,
    fetch,
    require,
    run,
    say,
)
from compose_trials import check_kills, check_upgrade

ROLES = ("attention", "review", "flows", "trainer", "triton-cpu")
CASES = 4

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
from atlas_attention.settings import AttentionSettings
from atlas_core.tls import tritonclient_arguments
login = tritonclient_arguments(AttentionSettings().triton_tls)
client = t.InferenceServerClient("triton:8001", **login)
print("models that infer:", sorted({m.name for m in client.get_inference_statistics().model_stats}))
try:
    client.unload_model("demo_unet")
    print("attention may unload models")
except t.InferenceServerException as error:
    print("unload refused:", error.message().split(",")[0])
try:
    t.InferenceServerClient("triton:8001").is_server_live(client_timeout=10)
    print("Triton takes strangers")
except t.InferenceServerException:
    print("Triton takes nobody without a certificate")
"""


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    build: tuple[str, ...]
    do_build: bool
    trainer: bool
    before: str | None
    keep: bool


# --- images ---


def build(release: Release, role: str, options: Sequence[str]) -> float:
    """Seconds that it took."""
    began = time.monotonic()
    dockerfile = release.root / "deploy" / "docker" / f"{role}.Dockerfile"
    run(
        ["docker", "build", *options, "--file", str(dockerfile), "--tag", release.image(role),
         str(release.root)],
        {"DOCKER_BUILDKIT": "1"},
    )  # fmt: skip
    return time.monotonic() - began


def check_image(role: str) -> str:
    """One line about an image: what `docker image inspect` and a hardened container say."""
    (told,) = json.loads(run(["docker", "image", "inspect", THIS.image(role)]))
    config = told["Config"]
    require(config["User"] == "10001:10001", f"{role} runs as {config['User']}")
    require("Healthcheck" in config, f"{role} has no health check")
    python = ["--entrypoint=python", THIS.image(role), "-c", INSIDE]
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
         THIS.image("review")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    require(done.returncode == 2, f"review without its secret exited with {done.returncode}")
    return done.stderr.strip()


# --- the stack ---


def check_containers(stack: Stack) -> str:
    """One line per container: health or exit status, after checking user and file system."""
    lines = []
    for name, told in stack.containers().items():
        service, _, number = name.rpartition("-")
        state = told["State"]
        require(told["HostConfig"]["ReadonlyRootfs"], f"{name} may write to its root file system")
        user = told["Config"]["User"]
        own = {"volumes": "0:0", "proxy": "101:101"}.get(service, "10001:10001")
        require(user == own, f"{name} runs as {user}")
        if state["Running"]:
            how = state["Health"]["Status"]
            require(how == "healthy", f"{name} is {how}")
        else:
            how = f"exited with {state['ExitCode']}"
            require(state["ExitCode"] == 0, f"{name} {how}")
        lines.append(f"{service:16} {number}  {how}")
    return "\n".join(lines)


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
    require("unload refused" in said and "nobody without" in said, said)
    return f"attention does not reach the database, nor review Prefect or Triton\n{said}"


def check_replicas(stack: Stack) -> str:
    """Windows were answered by every Triton."""
    lines = []
    for name in stack.containers():
        if name.startswith("triton-"):
            python = ["python3", "-c", COUNTED]
            number = name.removeprefix("triton-")
            said = stack.compose("exec", "-T", "--index", number, "triton", *python).strip()
            require(float(said) > 0, f"{name} answered no window")
            lines.append(f"{name}: {float(said):.0f} inferences")
    require(len(lines) == dict(stack.release.replicas)["triton"], f"Tritons: {lines}")
    return ", ".join(lines)


COUNTED = """
import urllib.request as u
lines = u.urlopen("http://127.0.0.1:8002/metrics", timeout=10).read().decode().splitlines()
print(sum(float(l.split()[-1]) for l in lines if l.startswith("nv_inference_request_success{")))
"""


def demo(stack: Stack) -> None:
    """Phantoms in, a priority list out: by the command, then by a run that the worker picks up."""
    stack.phantoms("demo", CASES, seed=0)
    say(f"$ atlasloop score --limit {CASES - 1}")
    say(stack.inside("flows", "atlasloop", "score", "--limit", str(CASES - 1)).strip())
    say("$ prefect deployment run score/score --watch")
    said = stack.inside("flows", "prefect", "deployment", "run", "score/score", "--watch")
    say(said.strip().splitlines()[-1])
    say("$ atlasloop ranking")
    say(stack.inside("flows", "atlasloop", "ranking").strip())
    require(len(stack.ranking()) == CASES, f"{len(stack.ranking())} of {CASES} cases are ranked")


def check_backup(stack: Stack) -> None:
    """A backup of the running stack, restored into a second, empty database."""
    say("$ atlasloop backup /backup/one")
    say(stack.inside("flows", "atlasloop", "backup", "/backup/one").strip())
    create = ("createdb", "--username=postgres", "--owner=atlasloop", "restored")
    stack.compose("exec", "-T", "postgresql", *create)
    url = stack.inside("flows", "printenv", "ATLASLOOP_CATALOG_URL").strip()
    second = f"ATLASLOOP_CATALOG_URL={url.replace('/atlasloop?', '/restored?')}"
    say("$ atlasloop restore /backup/one    # into a second database")
    say(stack.inside("flows", "atlasloop", "restore", "/backup/one", env=[second]).strip())
    require(stack.ranking() == stack.ranking(env=[second]), "the restored catalog ranks otherwise")
    say("the restored catalog gives the same ranking")


def check_stack(stack: Stack) -> None:
    """Up, look, demo, kill."""
    say(f"$ docker compose up --detach --wait    # {stack.up():.0f} s")
    say(check_containers(stack))
    say(check_doors(stack))
    say(check_proxy(stack))
    say(check_walls(stack))
    demo(stack)
    say(check_replicas(stack))
    check_backup(stack)
    check_pacs(stack)
    check_kills(stack)


def unpacked(commit: str, folder: Path) -> Release:
    """The repository as it was at `commit`, in `folder`."""
    archive = folder.with_suffix(".tar")
    run(["git", "-C", str(THIS.root), "archive", "--output", str(archive), commit])
    folder.mkdir()
    run(["tar", "--extract", "--file", str(archive), "--directory", str(folder)])
    return Release(folder, "before")


def check_images(options: Options, before: Release | None) -> None:
    """Build them, and look into each of this release."""
    for role in ROLES:
        if role == "trainer" and not options.trainer:
            continue
        seconds = build(THIS, role, options.build) if options.do_build else None
        say(f"{check_image(role)}{'' if seconds is None else f'  built in {seconds:.0f} s'}")
        if before is not None and role != "trainer" and options.do_build:
            taken = build(before, role, options.build)
            say(f"{role:10} of the release before: built in {taken:.0f} s")
    say(check_missing_secret())


def check_all(folder: Path, options: Options) -> None:
    """Images, then the stack anew, then an upgrade."""
    before = None if options.before is None else unpacked(options.before, folder / "before")
    check_images(options, before)
    trials = [("new", THIS, check_stack)]
    if before is not None:
        trials.append(("upgraded", before, check_upgrade))
    for name, release, trial in trials:
        (folder / name).mkdir()
        stack = Stack(folder / name, release)
        try:
            trial(stack)
        finally:
            if not options.keep:
                stack.compose("down", "--volumes", "--timeout", "20", "--remove-orphans")


def read_options(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--pip-conf", type=Path, help="pip's configuration for your own index")
    parser.add_argument("--host-network", action="store_true", help="build in the host's network")
    parser.add_argument("--no-build", action="store_true", help="check the images of the last run")
    parser.add_argument(
        "--no-trainer", action="store_true", help="leave the image out that has torch"
    )
    parser.add_argument(
        "--before", metavar="COMMIT", help="upgrade from the release of this commit"
    )
    parser.add_argument("--keep", action="store_true", help="leave the last stack running")
    given = parser.parse_args(arguments)
    build = [f"--build-arg={one}" for one in given.build_arg]
    if given.pip_conf:
        build.append(f"--secret=id=pip.conf,src={given.pip_conf.absolute()}")
    if given.host_network:
        build.append("--network=host")
    return Options(tuple(build), not given.no_build, not given.no_trainer, given.before, given.keep)


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
        with tempfile.TemporaryDirectory(prefix="atlasloop-compose-") as name:
            check_all(Path(name), options)
    except CheckFailed as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    say("compose: everything as it should be")
    return 0


if __name__ == "__main__":
    sys.exit(main())
