"""The reference of the review service's HTTP interface, out of its OpenAPI document."""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

from atlas_review.app import create_app
from atlas_review.settings import ReviewSettings

INTRODUCTION = """\
# REST

The review service describes itself at `/api/v1/openapi.json`; this page is written from the same
document. The page signs in with a cookie and sends a CSRF token; programs send
`Authorization: Bearer TOKEN` ([make a token](../how-to/administer-review.md)). Errors are
`application/problem+json` with `type`, `title`, `status` and `detail`.
"""

REFUSALS = """\
## Refusals

Every route may answer with these:

| status | meaning |
|---|---|
"""

TITLES = {
    "": "Other",
    "monai label": "MONAI Label protocol",
}

Node = dict[str, Any]


def markdown() -> str:
    """A section per resource, and one table per schema."""
    document = create_app(ReviewSettings()).openapi()
    calls = [
        (_resource(call), verb.upper(), path, call)
        for path, calls in document["paths"].items()
        for verb, call in calls.items()
    ]
    shared = set.intersection(*(set(call["responses"]) for _, _, _, call in calls))
    refusals = [(status, calls[0][3]["responses"][status]) for status in sorted(shared)]
    sections = [INTRODUCTION, REFUSALS.rstrip()]
    sections += [f"| {status} | {answer['description']} |" for status, answer in refusals]
    order = {resource: number for number, resource in enumerate(dict.fromkeys(c[0] for c in calls))}
    for resource, group in groupby(sorted(calls, key=lambda c: order[c[0]]), key=lambda c: c[0]):
        sections.append(f"\n## {TITLES.get(resource, resource.capitalize())}\n")
        sections += [_call(verb, path, call, shared) for _, verb, path, call in group]
    sections.append("\n## Schemas\n")
    sections += [_schema(name, node) for name, node in document["components"]["schemas"].items()]
    return "\n".join(sections)


def _resource(call: Node) -> str:
    return str((call.get("tags") or [""])[0])


def _call(verb: str, path: str, call: Node, shared: set[str]) -> str:
    lines = [f"### `{verb} {path}`", "", _plain(call.get("description") or call["summary"]), ""]
    rows = [
        (f"`{one['name']}`", one["in"], _type(one["schema"]), one.get("description", ""))
        for one in call.get("parameters", [])
    ]
    for kind, body in call.get("requestBody", {}).get("content", {}).items():
        rows.append(("body", f"`{kind}`", _type(body.get("schema", {})), ""))
    if rows:
        lines += ["| parameter | in | type | meaning |", "|---|---|---|---|"]
        lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in rows] + [""]
    answers = [
        f"{status} {answer.get('description', '')}".strip() + _content(answer)
        for status, answer in call["responses"].items()
        if status not in shared
    ]
    return "\n".join([*lines, "Answers: " + "; ".join(answers) + ".", ""])


def _content(answer: Node) -> str:
    found = [
        f" ({_type(body['schema'])})" if "$ref" in str(body.get("schema", "")) else f" (`{kind}`)"
        for kind, body in answer.get("content", {}).items()
        if kind != "application/problem+json"
    ]
    return "".join(found)


def _schema(name: str, node: Node) -> str:
    lines = [f"### {name}", "", _plain(node.get("description", "")), ""]
    if "enum" in node:
        lines += ["One of " + ", ".join(f"`{value}`" for value in node["enum"]) + ".", ""]
    required = node.get("required", [])
    if properties := node.get("properties"):
        lines += ["| field | type | meaning |", "|---|---|---|"]
        for field, schema in properties.items():
            name_cell = f"`{field}`" + ("" if field in required else " (optional)")
            cells = (name_cell, _type(schema), schema.get("description", ""))
            lines.append("| " + " | ".join(map(_cell, cells)) + " |")
        lines.append("")
    return "\n".join(lines)


def _type(schema: Node) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            kinds = [_type(one) for one in schema[key] if one.get("type") != "null"]
            return " or ".join(dict.fromkeys(kinds))
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    kind = str(schema.get("format") or schema.get("type") or "any")
    limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    found = [f"{sign} {schema[key]}" for key, sign in limits.items() if key in schema]
    if "maxLength" in schema:
        found.append(f"at most {schema['maxLength']} characters")
    return f"{kind} ({', '.join(found)})" if found else kind


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _plain(text: str) -> str:
    """One paragraph without HTML: a placeholder such as <PUBLIC_URL> is shown, not obeyed."""
    return re.sub(r"\s+", " ", text).strip().replace("<", "&lt;")
