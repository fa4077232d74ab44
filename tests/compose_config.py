"""The compose files as an administrator would use them, for tests: real compose, no engine."""

from __future__ import annotations

import functools
import json
import subprocess
from pathlib import Path
from typing import Any

from rendered_chart import REPOSITORY, program

FOLDER = REPOSITORY / "deploy" / "compose"
FILES = (
    ("compose.yaml",),
    ("compose.yaml", "compose.gpu.yaml"),
    ("compose.yaml", "compose.tls.yaml"),
    ("compose.yaml", "compose.nninteractive.yaml"),
)


def compose(*arguments: str, env: str = "example.env") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("docker-compose"), "--env-file", env, *arguments],
        cwd=FOLDER, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@functools.cache
def read(files: tuple[str, ...]) -> dict[str, Any]:
    chosen = [option for file in files for option in ("--file", file)]
    done = compose(*chosen, "--profile=tls", "--profile=pacs", "config", "--format", "json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def triton_arguments(folder: Path, key: str, files: tuple[str, ...] = FILES[0]) -> list[str]:
    """As the shell in the compose file gives them to Triton, the key out of its secret.

    Args:
        folder: stands for the secrets.
    """
    service = read(files)["services"]["triton"]
    shell, options, script, name = service["entrypoint"]
    (folder / "triton_control").write_text(f"{key}\n")
    shown = folder / "tritonserver"
    shown.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    shown.chmod(0o755)
    script = script.replace("$$", "$").replace("/run/secrets", str(folder))
    started = subprocess.run(
        [shell, options, script, name, *service["command"]],
        env={"PATH": f"{folder}:/usr/bin:/bin"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return started.stdout.splitlines()
