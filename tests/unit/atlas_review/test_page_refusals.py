"""Every refusal that the review page can show is in its language files."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from atlas_core.errors import AtlasError
from atlas_review.api.problems import STATUS
from page_languages import SOURCES, entries
from triton_server import REPOSITORY

LANGUAGES = sorted((SOURCES / "languages" / "refusals").glob("*.ts"))
SERVICE = REPOSITORY / "services" / "atlas_review"
RAISING = (SERVICE, REPOSITORY / "core" / "atlas_core" / "review")
ELSEWHERE = ("monai_label", "web", "oidc.py")
"""What other programs are told, and what a browser shows without the page."""
PROBLEMS = SERVICE / "api" / "problems.py"


def errors(kind: type[AtlasError]) -> set[str]:
    return {kind.__name__}.union(*(errors(one) for one in kind.__subclasses__()))


ERRORS = errors(AtlasError) - {"ConfigurationError"}  # which no request meets


def template(node: ast.expr) -> str | None:
    """An English text, `{}` for each of its values; None: the expression is no text."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(one.value) if isinstance(one, ast.Constant) else "{}" for one in node.values
        )
    return None


def calls() -> Iterator[ast.Call]:
    """Calls that make an error, those of errors to their base among them."""
    for folder in RAISING:
        for path in sorted(folder.rglob("*.py")):
            if not any(part in ELSEWHERE for part in path.parts):
                for node in ast.walk(ast.parse(path.read_text())):
                    if isinstance(node, ast.Call) and named(node.func):
                        yield node


def named(function: ast.expr) -> bool:
    return ast.unparse(function) == "super().__init__" or getattr(function, "id", "") in ERRORS


def refusals() -> set[str]:
    """What was refused, and the remedy."""
    found = {template(one) for call in calls() for one in call.args}
    found |= {template(k.value) for call in calls() for k in call.keywords if k.arg == "remedy"}
    return {text for text in found if text and not text.startswith("{}")}


def titles() -> set[str]:
    """Titles of problems that errors of ours become."""
    answers = [
        template(node.args[1])
        for node in ast.walk(ast.parse(PROBLEMS.read_text()))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == "problem"
        and isinstance(node.args[0], ast.Constant)
        and node.args[0].value != 400
    ]
    return {title for _, _, title in STATUS} | {one for one in answers if one}


@pytest.mark.parametrize("path", LANGUAGES, ids=lambda path: path.stem)
def test_every_refusal_is_translated_and_nothing_else(path: Path) -> None:
    known = {key.replace("\\'", "'"): text for key, text in entries(path.read_text()).items()}
    assert len(refusals()) > 80
    assert sorted(refusals() | titles()) == sorted(known)
    counted = re.compile(r"\{\}")
    assert [a for a, b in known.items() if len(counted.findall(a)) != len(counted.findall(b))] == []
