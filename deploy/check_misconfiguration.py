"""Trivy's misconfiguration checks of the rendered chart and the Dockerfiles, offline.

    python deploy/check_misconfiguration.py

Every finding is mended, or stands in ``deploy/trivy-reviewed.yaml`` with the reason why it may be.
A reviewed finding that no longer occurs is an error too: the list stays as short as it can be.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
CHART = FOLDER / "helm" / "atlasloop"
REVIEWED = FOLDER / "trivy-reviewed.yaml"
KUBERNETES = "1.32.0"


def program(name: str) -> str:
    """A program of this Python's environment."""
    return str(Path(sys.executable).parent / name)


def render(folder: Path) -> None:
    """Every values file of the chart, one manifest each, into `folder`."""
    for values in sorted((CHART / "ci").glob("*.yaml")):
        done = subprocess.run(
            [
                program("helm"), "template", "site", str(CHART), "--values", str(values),
                "--namespace", "atlas", "--kube-version", KUBERNETES,
            ],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        (folder / values.name).write_text(done.stdout, encoding="utf-8")


def findings(folder: Path) -> dict[str, set[str]]:
    """Files by the id of the check that failed in them."""
    done = subprocess.run(
        [
            program("trivy"), "config", "--quiet", "--format", "json", "--skip-check-update",
            "--skip-version-check", "--disable-telemetry", str(folder),
        ],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: defaultdict[str, set[str]] = defaultdict(set)
    report: dict[str, Any] = json.loads(done.stdout)
    for result in report.get("Results", []):
        for problem in result.get("Misconfigurations", []):
            name = f"{problem['ID']} {problem['Severity']} {problem['Title']}"
            found[name].add(f"{result['Target']}: {problem['Message']}")
    return dict(found)


def main() -> int:
    """Exit status: 1 if something is new, or reviewed and gone."""
    reviewed = yaml.safe_load(REVIEWED.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="atlasloop-trivy-") as name:
        folder = Path(name)
        render(folder)
        for dockerfile in sorted((FOLDER / "docker").glob("*.Dockerfile")):
            (folder / dockerfile.name).write_text(dockerfile.read_text(encoding="utf-8"))
        found = findings(folder)
    ids = {check.split()[0] for check in found}
    new = [check for check in sorted(found) if check.split()[0] not in reviewed]
    for check in new:
        sys.stdout.write(f"{check}\n")
        for where in sorted(found[check])[:5]:
            sys.stdout.write(f"    {where}\n")
    for gone in sorted(set(reviewed) - ids):
        sys.stdout.write(f"{gone} does not occur any more: remove it from {REVIEWED.name}\n")
    sys.stdout.write(f"trivy: {len(found)} kinds of findings, {len(new)} new\n")
    return 1 if new or set(reviewed) - ids else 0


if __name__ == "__main__":
    sys.exit(main())
