"""The compose file under a project of its own, by a real engine, for `check_compose`."""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
PROJECT = "atlasloop-check"
REGISTRY = "atlasloop-check.invalid"
"""No registry: a missing image cannot be pulled by accident."""

REVIEW, PREFECT, TLS, PACS, ORTHANC = 18930, 18920, 18943, 18911, 18942
REVIEW_HOST, PREFECT_HOST = "review.localhost", "prefect.localhost"
PASSWORD_FILES = (
    "catalog_password", "review_password", "prefect_password", "review_secret", "triton_control",
    "pacs_password",
)  # fmt: skip
HARDENED = (
    "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges:true", "--network=none",
    "--tmpfs=/tmp:mode=1777",
)  # fmt: skip
HEALTHY_WITHIN_S = 600.0


class CheckFailed(Exception):
    """What was expected did not happen."""


@dataclass(frozen=True)
class Release:
    """What is brought up.

    Attributes:
        root: its repository.
        version: tag of its images.
        files: of its compose folder.
        profiles: of these.
        replicas: how many of a service, where it is not one.
    """

    root: Path
    version: str
    files: tuple[str, ...] = ("compose.yaml",)
    profiles: tuple[str, ...] = ("tls",)
    replicas: tuple[tuple[str, int], ...] = ()

    def image(self, role: str) -> str:
        """Name of the image of a role."""
        return f"{REGISTRY}/atlasloop/{role}:{self.version}"


THIS = Release(
    REPOSITORY,
    "check",
    ("compose.yaml", "compose.tls.yaml"),
    ("tls", "pacs"),
    (("triton", 2), ("attention", 2)),
)


def say(text: str) -> None:
    """One or more lines of the transcript."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def require(true: bool, otherwise: str) -> None:
    """Raise `CheckFailed` if it is not."""
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
    """The compose file under a project of its own, with secrets made for it.

    Attributes:
        release: what `compose` works with; another one may take its place, with the same data.
    """

    def __init__(self, folder: Path, release: Release) -> None:
        self.release = release
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
        self._make_inner_certificates()
        self._env = {
            "ATLASLOOP_REGISTRY": REGISTRY,
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
            "ATLASLOOP_PACS_ADDRESS": f"127.0.0.1:{PACS}",
            "ATLASLOOP_PACS_DICOMWEB_URL": "http://orthanc:8042/dicom-web",
            "ATLASLOOP_PACS_DICOMWEB_USER": "atlas",
        }

    def _write_secret(self, name: str, value: str) -> None:
        path = self._secrets / name
        path.write_text(f"{value}\n")
        path.chmod(0o444)

    def secret(self, name: str) -> str:
        """What is in a file of secrets."""
        return (self._secrets / name).read_text().strip()

    def _make_inner_certificates(self) -> None:
        """As docs/how-to/install.md says; user 10001 owns them, or PostgreSQL refuses its key."""
        folder = self._secrets / "tls"
        run(["bash", str(REPOSITORY / "deploy" / "compose" / "certificates.sh"), str(folder)])
        folder.chmod(0o755)
        run(
            ["docker", "run", "--rm", "--user=0:0", "--cap-drop=ALL", "--cap-add=CHOWN",
             "--network=none", f"--volume={folder}:/tls", "--entrypoint=sh", THIS.image("flows"),
             "-c", "chown 10001:10001 /tls/*"],
        )  # fmt: skip

    def compose(self, *arguments: str) -> str:
        """stdout of compose."""
        program = Path(sys.executable).parent / "docker-compose"
        command = [str(program)] if program.exists() else ["docker", "compose"]
        folder = self.release.root / "deploy" / "compose"
        files = [word for name in self.release.files for word in ("--file", str(folder / name))]
        files += [word for name in self.release.profiles for word in ("--profile", name)]
        return run(
            [*command, *files, "--project-name", PROJECT, *arguments],
            {**self._env, "ATLASLOOP_VERSION": self.release.version},
        )  # fmt: skip

    def up(self, *services: str) -> float:
        """Bring it up and wait until it is healthy; seconds."""
        scale = [
            f"--scale={service}={number}"
            for service, number in self.release.replicas
            if not services or service in services
        ]
        began = time.monotonic()
        try:
            self.compose("up", "--detach", "--wait", "--remove-orphans", *scale, *services)
        except CheckFailed:
            say(self.compose("logs", "--no-color", "--tail", "40"))
            raise
        return time.monotonic() - began

    def inside(self, service: str, *command: str, env: Sequence[str] = ()) -> str:
        """stdout of a program beside the service's own, with the service's secrets."""
        variables = [f"--env={one}" for one in env]
        return self.compose("exec", "-T", *variables, service, "entrypoint.sh", *command)

    def containers(self) -> dict[str, dict[str, Any]]:
        """What the engine says of each container, by ``service-number``."""
        ids = self.compose("ps", "--all", "--quiet").split()
        label = "com.docker.compose."
        found = {}
        for one in json.loads(run(["docker", "inspect", *ids])):
            labels = one["Config"]["Labels"]
            found[f"{labels[f'{label}service']}-{labels[f'{label}container-number']}"] = one
        return dict(sorted(found.items()))

    def ranking(self, *options: str, env: Sequence[str] = ()) -> list[tuple[str, float]]:
        """Cases and their attention (ml), the first first."""
        said = self.inside("flows", "atlasloop", "ranking", "--json", *options, env=env)
        rows = json.loads(said)["ranking"]
        return [(row["case"], round(row["attention_ml"], 3)) for row in rows]

    def phantoms(self, name: str, cases: int, seed: int) -> None:
        """Draw CTs in a new folder of the import folder, and take them in."""
        run(
            ["docker", "run", "--rm", *HARDENED, "--volume", f"{self.import_folder}:/import",
             self.release.image("flows"), "atlasloop", "phantoms", f"/import/{name}",
             "--cases", str(cases), "--seed", str(seed)],
        )  # fmt: skip
        self.inside("flows", "atlasloop", "import", f"/import/{name}", "--dataset", "phantoms")


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
