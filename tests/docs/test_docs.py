"""The documentation as readers get it: it builds, its links hold, it fetches nothing from
elsewhere, and the commands, targets, variables, paths and modules that it names exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from atlas_attention.settings import AttentionSettings
from atlas_core.pacs import PacsSettings
from atlas_embedded.settings import EmbeddedSettings
from atlas_flows.cli import app
from atlas_flows.settings import FlowSettings
from atlas_review.app import create_app
from atlas_review.settings import ReviewSettings
from atlasloop.attention.v1 import attention_pb2
from typer.main import get_command

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(
        page
        for page in sorted((ROOT / "docs").rglob("*.md"))
        # A record keeps the names of its day.
        if page.parent.name not in ("decisions", "assets")
    ),
]
SOURCES = ("core", "services", "models", "flows", "deploy", "tests", "benchmarks", "docs", ".ci")
IMPORT_ROOTS = [ROOT / "core", ROOT / "services", ROOT / "models", ROOT / "flows"]
IMPORT_ROOTS.append(ROOT / "deploy/embedded")

ATLASLOOP = get_command(app)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


# --- the built site ---


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    built = subprocess.run(
        [*command, "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@dataclass
class Html(HTMLParser):
    """What a page links to, what it fetches by itself, and which anchors it has."""

    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors.update(filter(None, (given.get("id"), given.get("name"))))
        target = given.get("href") if tag in ("a", "link") else given.get("src")
        if target is not None:
            (self.links if tag == "a" else self.fetched).append(target)


@cache
def read_html(page: Path) -> Html:
    html = Html()
    html.feed(page.read_text())
    return html


def html_pages(site: Path) -> list[Path]:
    # 404.html is the page of a server that has the site at its root; its addresses are absolute.
    return [page for page in sorted(site.rglob("*.html")) if page.name != "404.html"]


def test_every_part_of_the_site_is_there(site: Path) -> None:
    names = {str(page.relative_to(site)) for page in html_pages(site)}
    reference = {f"reference/{name}.html" for name in ("cli", "settings", "grpc", "rest")}
    assert {"index.html", "reference/python-client.html", *reference} <= names
    assert "AttentionClient" in (site / "reference/python-client.html").read_text()


def test_the_reference_leaves_nothing_out(site: Path) -> None:
    def text_of(name: str) -> str:
        return (site / "reference" / f"{name}.html").read_text()

    commands = [f"atlasloop {path}" for path in _paths(ATLASLOOP)]
    messages = attention_pb2.DESCRIPTOR.message_types_by_name
    fields = {f"<code>{field}</code>" for one in messages.values() for field in one.fields_by_name}
    routes = create_app(ReviewSettings()).openapi()["paths"]
    assert [
        command for command in commands if f"<code>{command}</code>" not in text_of("cli")
    ] == []
    assert [name for name in setting_variables() if name not in text_of("settings")] == []
    assert [one for one in {*messages, *fields} if one not in text_of("grpc")] == []
    assert [path for path in routes if path not in text_of("rest")] == []


def _paths(command: object, above: str = "") -> Iterator[str]:
    for name, below in getattr(command, "commands", {}).items():
        yield above + name
        yield from _paths(below, f"{above}{name} ")


def test_links_and_anchors_of_the_site_hold(site: Path) -> None:
    broken = []
    for page in html_pages(site):
        for link in [*read_html(page).links, *read_html(page).fetched]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if not target.is_file():
                broken.append(f"{page.relative_to(site)}: {link}")
            elif (
                parts.fragment
                and target.suffix == ".html"
                and parts.fragment != "__skip"
                and unquote(parts.fragment) not in read_html(target).anchors
            ):
                broken.append(f"{page.relative_to(site)}: no anchor {link}")
    assert not broken


def test_no_page_fetches_anything_from_another_host(site: Path) -> None:
    outside = [
        f"{page.relative_to(site)}: {address}"
        for page in html_pages(site)
        for address in read_html(page).fetched
        if urlsplit(address).netloc
    ]
    outside += [
        f"{sheet.relative_to(site)}: {address}"
        for sheet in site.rglob("*.css")
        for address in re.findall(
            r"(?:url\(|@import )['\"]?((?:https?:)?//[^'\")]+)", sheet.read_text()
        )
    ]
    assert not outside


# --- what the pages name ---


def fences(page: Path) -> list[tuple[str, str]]:
    """Fenced blocks as (language, text); lines that end in a backslash are joined with the next."""
    found = re.findall(
        r"^ *```(\w*)[^\n]*\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL
    )
    return [(language, text.replace("\\\n", " ")) for language, text in found]


def inline_code(page: Path) -> list[str]:
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]


def code_lines(page: Path) -> list[str]:
    """Inline code and each line of shell blocks, without their comments."""
    blocks = [text for language, text in fences(page) if language in ("", "bash", "console")]
    lines = [line for block in blocks for line in block.splitlines()]
    return [line.split("  #")[0].split(" # ")[0] for line in [*inline_code(page), *lines]]


@each_page
def test_commands_and_their_options_exist(page: Path) -> None:
    unknown = []
    for line in code_lines(page):
        for words in re.findall(r"(?:^|[\s$(])atlasloop ([a-z][^|;&)]*)", line):
            command = ATLASLOOP
            options = set(_options(command))
            for word in words.split():
                if word in getattr(command, "commands", {}):
                    command = command.commands[word]
                    options |= set(_options(command))
                elif hasattr(command, "commands") and re.fullmatch(r"[a-z][a-z-]*", word):
                    unknown.append(f"atlasloop {words}: no command {word!r}")
                    break
                else:
                    break
            unknown += [
                f"atlasloop {words}: no option {option}"
                for option in re.findall(r"(?<!\S)--[a-z][a-z-]*", words)
                if option not in options
            ]
    assert not unknown


def _options(command: object) -> Iterator[str]:
    yield "--help"
    for parameter in getattr(command, "params", []):
        yield from parameter.opts


@each_page
def test_make_targets_exist(page: Path) -> None:
    rules = re.findall(r"^([a-z][a-z -]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    targets = {target for rule in rules for target in rule.split()}
    named = {
        target
        for line in code_lines(page)
        for target in re.findall(r"(?:^|\s)make ([a-z][a-z-]*)", line)
    }
    assert named <= targets


@each_page
def test_environment_variables_exist(page: Path) -> None:
    named = set(_variables(page.read_text()))
    assert {name.removesuffix("__FILE") for name in named} <= known_variables()


SETTINGS = (AttentionSettings, ReviewSettings, FlowSettings, EmbeddedSettings, PacsSettings)


def setting_variables() -> set[str]:
    return {
        f"{settings.model_config['env_prefix']}{name.upper()}"
        for settings in SETTINGS
        for name in settings.model_fields
    }


@cache
def known_variables() -> frozenset[str]:
    """Fields of the settings, and variables that tests, images and the Makefile read."""
    files = [ROOT / "Makefile", *(ROOT / "deploy").rglob("*"), *(ROOT / "tests").rglob("*.py")]
    texts = [file.read_text(errors="ignore") for file in files if file.is_file()]
    return frozenset(setting_variables().union(*map(_variables, texts)))


def _variables(text: str) -> list[str]:
    return re.findall(r"\b(?:ATLASLOOP|ATLAS_ATTENTION|ATLAS_REVIEW)_[A-Z][A-Z0-9_]*", text)


@each_page
def test_paths_of_the_repository_exist(page: Path) -> None:
    missing = [
        code
        for code in inline_code(page)
        if code.split("/")[0] in SOURCES
        and "/" in code
        and not re.search(r"[<>*…{} ]", code)
        and not (ROOT / code.split("::")[0]).exists()
    ]
    assert not missing


@each_page
def test_modules_and_names_exist(page: Path) -> None:
    packages = r"(?:atlasloop|atlas_(?:core|attention|review|models|flows|embedded))"
    named = [
        match[0]
        for code in inline_code(page)
        if (match := re.match(rf"{packages}(?:\.\w+)+", code)) and not _is_event(code)
    ]
    for language, text in fences(page):
        if language == "python":
            for module, names in re.findall(rf"from ({packages}[\w.]*) import ([\w, ]+)", text):
                named += [f"{module}.{name.strip()}" for name in names.split(",")]
    assert [name for name in named if not _resolves(name)] == []


def _is_event(code: str) -> bool:
    """Events and metadata keys are called atlasloop.… too; the client's modules are few."""
    return code.startswith("atlasloop.") and code.split(".")[1] not in (
        "client",
        "answers",
        "attention",
    )


def _resolves(dotted: str) -> bool:
    """A module, or a name in one: found in its file, as importing would load torch and more."""
    *parents, last = dotted.split(".")
    for root in IMPORT_ROOTS:
        folder = root.joinpath(*parents)
        if (folder / last).is_dir() or (folder / f"{last}.py").is_file():
            return True
        for file in (folder / "__init__.pyi", folder / "__init__.py", folder.with_suffix(".py")):
            if file.is_file() and re.search(rf"\b{last}\b", file.read_text()):
                return True
    return False
