"""The map in `docs/explanation/architecture.md`: its tree is the one on disk, its arrows and its
order of rooms are those that `.importlinter` keeps."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/explanation/architecture.md").read_text()
PACKAGES = {
    "atlas_core": "core",
    "atlasloop": "services",
    "atlas_attention": "services",
    "atlas_review": "services",
    "atlas_models": "models",
    "atlas_flows": "flows",
    "atlas_embedded": "deploy/embedded",
}
CONTRACTS = configparser.ConfigParser()
CONTRACTS.read(ROOT / ".importlinter")


def section(title: str) -> str:
    """The text below one heading of the page."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, f"no section {title!r}"
    return found[1]


def drawn_tree() -> list[str]:
    """Folders of the tree, by the depth of their indentation (four spaces each)."""
    block = section("The tree").split("```")[1]
    path: list[str] = []
    folders = []
    for line in filter(str.strip, block.splitlines()):
        depth = (len(line) - len(line.lstrip())) // 4
        name = re.match(r"[\w./-]+/(?=\s|$)", line.strip())
        assert name is not None, f"no folder in {line!r}"
        path = [*path[:depth], name[0].rstrip("/")]
        folders.append("/".join(path))
    return folders


def test_every_folder_of_the_tree_is_on_disk() -> None:
    assert [folder for folder in drawn_tree() if not (ROOT / folder).is_dir()] == []


def test_every_folder_of_the_packages_is_in_the_tree() -> None:
    on_disk = {
        str(file.parent.relative_to(ROOT))
        for package, root in PACKAGES.items()
        for file in (ROOT / root / package).rglob("*.py")
        if "node_modules" not in file.parts
    }
    assert sorted(on_disk - set(drawn_tree())) == []


def test_every_folder_of_the_tree_says_what_it_holds() -> None:
    block = section("The tree").split("```")[1]
    parents = {"core/", "services/", "models/", "flows/", "deploy/", "embedded/", "tests/"}
    bare = [line.strip() for line in block.splitlines() if re.fullmatch(r"\s*\S+/\s*", line)]
    assert set(bare) <= parents


def test_the_arrows_are_the_imports_between_packages() -> None:
    drawn = set(
        re.findall(r"^ +(\w+) --> (\w+)$", section("Which way imports point"), re.MULTILINE)
    )
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    imported = {
        (importer.split(".")[0], imported.split(".")[0])
        for importer in graph.modules
        for imported in graph.find_modules_directly_imported_by(importer)
    }
    assert drawn == {(importer, target) for importer, target in imported if importer != target}


def test_every_arrow_is_allowed() -> None:
    drawn = set(
        re.findall(r"^ +(\w+) --> (\w+)$", section("Which way imports point"), re.MULTILINE)
    )
    layers = layers_of("importlinter:contract:packages")
    height = {
        package: -number
        for number, layer in enumerate(layers)
        for package in map(str.strip, layer.split("|"))
    }
    assert set(height) == set(PACKAGES)
    wire = CONTRACTS["importlinter:contract:wire"]
    forbidden = {
        (source, target)
        for source in wire["source_modules"].split()
        for target in wire["forbidden_modules"].split()
    }
    assert all(height[importer] > height[target] for importer, target in drawn)
    assert not drawn & forbidden


def test_the_order_of_rooms_is_that_of_the_contracts() -> None:
    written = {
        package: [line.strip() for line in block.strip().splitlines()]
        for package, block in re.findall(
            r'```text title="(\w+)"\n(.*?)```', section("The order of rooms"), re.DOTALL
        )
    }
    kept = {
        CONTRACTS[name]["containers"].strip(): layers_of(name)
        for name in CONTRACTS.sections()
        if CONTRACTS[name].get("type") == "layers" and "containers" in CONTRACTS[name]
    }
    assert written == kept


def layers_of(contract: str) -> list[str]:
    return [line.strip() for line in CONTRACTS[contract]["layers"].strip().splitlines()]
