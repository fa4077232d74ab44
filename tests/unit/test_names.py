"""No two public classes share a name, so that each name has one meaning everywhere."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

PACKAGES = (
    "core/atlas_core",
    "services/atlas_attention",
    "services/atlas_review",
    "services/atlasloop",
    "models/atlas_models",
    "flows/atlas_flows",
    "deploy/embedded/atlas_embedded",
)

GENERATED = "services/atlasloop/attention"

MIRRORED = {"ModelRef"}
"""The same thing defined twice: the client may not import the core and has records of its own."""


def public_classes() -> Iterator[tuple[str, str]]:
    """Name and file of every public class at the top level of a module."""
    for package in PACKAGES:
        for file in sorted((REPOSITORY / package).rglob("*.py")):
            path = file.relative_to(REPOSITORY).as_posix()
            if path.startswith(GENERATED):
                continue
            for node in ast.parse(file.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    yield node.name, path


def test_every_public_class_name_has_one_meaning() -> None:
    files: dict[str, list[str]] = {}
    for name, path in public_classes():
        files.setdefault(name, []).append(path)
    shared = {name: paths for name, paths in files.items() if len(paths) > 1}
    assert {name: paths for name, paths in shared.items() if name not in MIRRORED} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_searched(package: str) -> None:
    assert any(path.startswith(package) for _, path in public_classes())
