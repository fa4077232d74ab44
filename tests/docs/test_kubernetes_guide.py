"""The guide for administrators of a cluster: its values render, its commands name what is there."""

from __future__ import annotations

import re
import shlex
import subprocess
from functools import cache
from pathlib import Path

import pytest
from atlas_core.catalog import Catalog
from atlas_flows.cli import app
from atlas_flows.settings import Places
from atlas_flows.work_pools import deployed_flows
from rendered_chart import (
    CHART,
    NAMESPACE,
    RELEASE,
    REPOSITORY,
    Manifest,
    containers,
    helm,
    of_kind,
    pod_templates,
)
from typer.testing import CliRunner
from yaml import safe_load_all

GUIDE = (REPOSITORY / "docs/how-to/kubernetes.md").read_text()

KINDS = {"deploy": "Deployment", "svc": "Service", "cronjob": "CronJob", "job": "Job"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)


def commands(*first: str) -> list[list[str]]:
    """Commands of the guide that begin with these words."""
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    found = [one for one in words if one[: len(first)] == list(first)]
    assert found, first
    return found


@cache
def values_file() -> str:
    (text,) = blocks("yaml")
    return text


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    values = tmp_path_factory.mktemp("guide") / "my-values.yaml"
    values.write_text(values_file())
    done = helm(
        "template", RELEASE, str(CHART), "--namespace", NAMESPACE, "--values", str(values),
        "--kube-version", "1.32.0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [one for one in safe_load_all(done.stdout) if one]


def test_every_block_is_a_shell_script() -> None:
    for block in blocks("bash"):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)


def test_the_secrets_are_those_that_the_chart_refers_to(manifests: list[Manifest]) -> None:
    made = {
        (words[6], option.removeprefix("--from-literal=").partition("=")[0])
        for words in commands("kubectl", "-n", "atlas", "create", "secret", "generic")
        for option in words[7:]
        if option.startswith("--from-literal=")
    }
    wanted = set()
    for _, pod in pod_templates(manifests):
        secrets = {
            volume["name"]: volume["secret"]["secretName"]
            for volume in pod["spec"]["volumes"]
            if "secret" in volume
        }
        for one in containers(pod):
            folders = {mount["mountPath"]: mount["name"] for mount in one.get("volumeMounts", [])}
            environment = one.get("env", [])
            for variable in environment if isinstance(environment, list) else []:
                if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                    wanted.add((reference["name"], reference["key"]))
                elif variable["name"].endswith("_FILE"):
                    path = Path(variable["value"])
                    if (volume := folders.get(str(path.parent))) in secrets:
                        wanted.add((secrets[volume], path.name))
    assert made == wanted


def test_helm_is_given_this_release_and_the_values_of_the_page(manifests: list[Manifest]) -> None:
    for words in commands("helm"):
        assert RELEASE in words
        assert words[words.index("-n") + 1] == NAMESPACE
        if "upgrade" in words:
            assert (REPOSITORY / words[words.index(RELEASE) + 1]) == CHART
            assert words[words.index("-f") + 1] == "my-values.yaml"
    assert manifests


def test_objects_that_commands_name_are_there(manifests: list[Manifest]) -> None:
    named = set(re.findall(rf"\b(deploy|svc|cronjob)/({RELEASE}-[a-z-]+)", GUIDE))
    assert len(named) >= 3
    for kind, name in named:
        assert name in {one["metadata"]["name"] for one in of_kind(manifests, KINDS[kind])}, name
    made = {words[5] for words in commands("kubectl", "-n", "atlas", "create", "job")}
    assert set(re.findall(r"\bjob/([a-z-]+)", GUIDE)) == made
    components = {
        pod["metadata"]["labels"]["app.kubernetes.io/component"]
        for _, pod in pod_templates(manifests)
    }
    assert set(re.findall(r"app.kubernetes.io/component=(\w+)", GUIDE)) <= components


def test_paths_in_the_toolbox_are_its_volumes(manifests: list[Manifest]) -> None:
    (mounts,) = [
        {mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]}
        for name, pod in pod_templates(manifests)
        if name == f"Deployment/{RELEASE}-atlasloop-toolbox"
    ]
    paths = re.findall(r"(?<![\w.])(/(?:var|backup)[\w/.-]*)", "\n".join(blocks("bash")))
    assert len(paths) >= 4
    assert [path for path in paths if not any(path.startswith(mount) for mount in mounts)] == []


def test_commands_of_ours_in_the_toolbox_are_understood(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Run for real, on an empty site: they say what is missing, not that they were misspelt."""
    monkeypatch.setenv("ATLASLOOP_HOME", str(tmp_path))
    Catalog.open(Places.read().catalog_url).close()
    ours = [
        words[words.index("atlasloop") + 1 :]
        for words in commands("kubectl", "-n", "atlas", "exec")
        if "atlasloop" in words
    ]
    assert {words[0] for words in ours} == {"ranking", "migrate", "restore"}
    for words in ours:
        done = CliRunner().invoke(app, words)
        assert done.exit_code in (0, 1), (words, done.output)
        if words[0] != "restore":  # there is no such backup here
            assert done.exit_code == 0, (words, done.output)
            Catalog.open(Places.read().catalog_url).close()


def test_flows_and_their_parameters_exist() -> None:
    flows = {f"{one.flow.name}/{one.flow.name}": one.flow for one in deployed_flows(Places.read())}
    started = [words for words in commands("kubectl", "-n", "atlas", "exec") if "run" in words]
    assert len(started) == 2
    for words in started:
        flow = flows[words[words.index("run") + 1]]
        given = [words[at + 1] for at, word in enumerate(words) if word == "--param"]
        parameters = dict(one.split("=", 1) for one in given)
        assert flow.validate_parameters(parameters)
