"""The Helm chart as an administrator would render it, for tests: real Helm, no cluster."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
CHART = REPOSITORY / "deploy" / "helm" / "atlasloop"
VALUES = ("trial", "production", "sidecar", "airgapped")
"""Files under ``ci/``."""

KUBERNETES = ("1.29", "1.31", "1.32", "1.33", "1.34")
NAMESPACE = "atlas"
RELEASE = "site"

Manifest = dict[str, Any]


def program(name: str) -> str:
    """A program of the extra `deploy`, which lies beside this Python."""
    path = Path(sys.executable).parent / name
    assert path.exists(), f"{name} is not installed: run `make setup-dev`"
    return str(path)


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("helm"), *arguments], capture_output=True, text=True, check=False, timeout=120
    )


def template(values: str, version: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`helm template` with one of the files under ``ci/``."""
    return helm(
        "template", RELEASE, str(CHART), "--values", str(CHART / "ci" / f"{values}.yaml"),
        "--namespace", NAMESPACE, "--kube-version", f"{version}.0", *arguments,
    )  # fmt: skip


@functools.cache
def _rendered(values: str, version: str, arguments: tuple[str, ...]) -> str:
    done = template(values, version, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def render(values: str, version: str = "1.32", *arguments: str) -> list[Manifest]:
    """Every object that Helm would send, hooks and tests included."""
    return [one for one in yaml.safe_load_all(_rendered(values, version, arguments)) if one]


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [one for one in manifests if one["kind"] in kinds]


def pod_templates(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Name and ``{metadata, spec}`` of every pod, those of flow runs included."""
    for one in manifests:
        name = f"{one['kind']}/{one['metadata']['name']}"
        if one["kind"] == "Pod":
            yield name, one
        elif one["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield name, one["spec"]["template"]
        elif one["kind"] == "CronJob":
            yield name, one["spec"]["jobTemplate"]["spec"]["template"]
    for pool, base in job_templates(manifests).items():
        job = base["job_configuration"]["job_manifest"]
        yield f"work pool {pool}", job["spec"]["template"]


def job_templates(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Prefect's base job template of every work pool."""
    (pools,) = [
        one for one in of_kind(manifests, "ConfigMap") if "work-pools" in one["metadata"]["name"]
    ]
    return {name.removesuffix(".json"): json.loads(text) for name, text in pools["data"].items()}


def containers(pod: Manifest) -> list[Manifest]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def container(manifests: list[Manifest], name: str) -> Manifest:
    """The one container of that name, among those that keep running."""
    (found,) = [
        one
        for owner in of_kind(manifests, "Deployment", "StatefulSet")
        for one in owner["spec"]["template"]["spec"]["containers"]
        if one["name"] == name
    ]
    return found


def environment(container: Mapping[str, Any], secrets: Mapping[str, str]) -> dict[str, str]:
    """Variables of a container as its entry point leaves them: NAME__FILE is NAME by then.

    Args:
        secrets: content by file name.
    """
    found = {}
    for variable in container.get("env", []):
        name, value = variable["name"], variable.get("value")
        if value is None:
            continue
        if name.endswith("__FILE"):
            name, value = name.removesuffix("__FILE"), secrets[Path(value).name]
        found[name] = value
    return found


def component(pod: Manifest) -> str:
    return str(pod["metadata"]["labels"]["app.kubernetes.io/component"])


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """A Kubernetes label selector."""
    if any(labels.get(k) != v for k, v in selector.get("matchLabels", {}).items()):
        return False
    for rule in selector.get("matchExpressions", []):
        assert rule["operator"] == "In"
        if labels.get(rule["key"]) not in rule["values"]:
            return False
    return True
