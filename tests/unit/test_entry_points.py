"""What others find by name: scripts, `-m` modules, flows, package data, migrations, loggers.

A file that moves takes its name along; nothing but these tests would notice a name left behind.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import subprocess
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory
from atlas_flows.settings import Places
from atlas_flows.work_pools import deployed_flows
from hatchling.builders.wheel import WheelBuilder
from prefect.flows import load_flow_from_entrypoint

REPOSITORY = Path(__file__).resolve().parents[2]
ROOTS = ("core", "services", "models", "flows", "deploy/embedded")
STARTED = re.compile(r"-m['\", ]+(atlas_\w+(?:\.\w+)*)")
"""`python -m module`, as a shell line or as an element of a list."""


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", *patterns], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return [path for name in listed.stdout.split() if (path := REPOSITORY / name).exists()]


def sources() -> list[Path]:
    return [path for root in ROOTS for path in tracked(f"{root}/*.py") if "_pb2" not in path.name]


def test_the_console_script_is_there() -> None:
    (script,) = entry_points(group="console_scripts", name="atlasloop")
    assert callable(script.load())


def test_every_module_that_is_started_by_name_exists() -> None:
    files = tracked("deploy", "flows", "models/atlas_models", "services", "Makefile", "*.md")
    named = {
        (path, module)
        for path in files
        if path.suffix not in {".js", ".css", ".png"}
        for module in STARTED.findall(path.read_text(encoding="utf-8"))
    }
    assert {module for _, module in named} >= {
        "atlas_attention", "atlas_review", "atlas_flows.serve", "atlas_flows.work_pools",
    }  # fmt: skip
    missing = [(path.name, m) for path, m in named if importlib.util.find_spec(m) is None]
    assert missing == []


def test_uvicorn_finds_the_application() -> None:
    from atlas_review.__main__ import APPLICATION

    module, _, name = APPLICATION.partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_every_deployment_names_a_flow_that_loads() -> None:
    deployed = deployed_flows(Places.read())
    assert {one.flow.name for one in deployed} == {
        "import", "import-model", "score", "score-shard", "ranking", "revise", "assemble",
        "release", "report", "finetune", "evaluate", "iterate", "pull", "push",
    }  # fmt: skip
    for one in deployed:
        entrypoint = one.deployment(None).entrypoint
        assert load_flow_from_entrypoint(entrypoint).name == one.flow.name


def test_the_wheel_holds_every_source_face_and_resource(tmp_path: Path) -> None:
    (built,) = WheelBuilder(str(REPOSITORY)).build(directory=str(tmp_path), versions=["standard"])
    packed = set(zipfile.ZipFile(built).namelist())
    unpacked = {
        str(path.relative_to(REPOSITORY / root))
        for root in ROOTS
        for path in tracked(root)
        if (inside := path.relative_to(REPOSITORY / root)).parts[0].startswith("atlas")
        and "web" not in inside.parts
    }
    assert sorted(unpacked - packed - {"atlas_models"}) == []
    assert {
        "atlas_core/catalog/__init__.pyi",
        "atlas_core/catalog/migrations/env.py",
        "atlas_core/catalog/migrations/script.py.mako",
        "atlas_core/importing/presets.yaml",
        "atlas_core/schemes/totalsegmentator_v2.yaml",
        "atlas_attention/fusion/gpu/kernels.cu",
        "atlas_models/serving/triton_backend/model.py",
        "atlas_models/configs/demo/unet.yaml",
        "atlas_flows/templates/report.html.j2",
        "atlas_review/static/index.html",
    } <= packed


def test_alembic_finds_its_revisions() -> None:
    ini = REPOSITORY / "core/atlas_core/catalog/migrations/alembic.ini"
    scripts = ScriptDirectory.from_config(Config(str(ini)))
    from atlas_core.catalog.tables import REVISION

    assert scripts.get_current_head() == REVISION


def test_loggers_bear_the_name_of_their_own_module() -> None:
    strangers = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not ast.unparse(node.func).endswith("getLogger"):
                continue
            named = ast.unparse(node.args[0]) if node.args else ""
            if named.startswith("'atlas"):
                strangers.append(f"{path.name}, line {node.lineno}: {named}")
    assert strangers == []


def test_every_face_gives_what_it_names() -> None:
    for stub in [path for root in ROOTS for path in tracked(f"{root}/*/__init__.pyi")]:
        (root,) = (root for root in ROOTS if stub.is_relative_to(REPOSITORY / root))
        package = ".".join(stub.parent.relative_to(REPOSITORY / root).parts)
        face = importlib.import_module(package)
        assert face.__all__, package
        for name in face.__all__:
            assert hasattr(face, name), f"{package}.{name}"
