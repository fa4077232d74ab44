"""The reference of the gRPC protocol, out of the comments of `attention.proto`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

PROTO = Path(__file__).resolve().parents[2] / "services/atlasloop/attention/v1/attention.proto"

_BLOCK = re.compile(r"(service|message|enum|oneof) (\w+) \{\s*(\})?")
_CALL = re.compile(r"rpc (\w+)\((stream )?(\w+)\) returns \((stream )?(\w+)\);")
_FIELD = re.compile(r"(?:(repeated |optional )?([\w.]+) )?(\w+) = (\d+);")


@dataclass
class Block:
    """A message or an enum: its comment, and a row of cells per field or value."""

    kind: str
    name: str
    comment: str
    rows: list[tuple[str, str, str, str]] = field(default_factory=list)


@dataclass
class Protocol:
    """What the page shows, in the order of the file."""

    conventions: str = ""
    calls: list[tuple[str, str, str, str]] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)


def markdown() -> str:
    """Calls first, then every message and enum with its fields."""
    protocol = parse(PROTO.read_text())
    known = {block.name for block in protocol.blocks}
    lines = ["# gRPC", "", protocol.conventions, "", "## AttentionService", ""]
    lines += [
        "Package `atlasloop.attention.v1`, file",
        "`services/atlasloop/attention/v1/attention.proto`. The server also offers the standard",
        "health service and reflection, so `grpcurl` needs no file.",
    ]
    for name, request, response, comment in protocol.calls:
        lines += ["", f"### {name}", "", f"{_linked(request, known)} → {_linked(response, known)}"]
        lines += ["", comment]
    lines += ["", "## Messages and enums"]
    for block in protocol.blocks:
        lines += ["", f"### {block.name}", "", block.comment]
        if block.rows:
            head = ("field", "type") if block.kind == "message" else ("value", "")
            lines += ["", f"| {head[0]} | number | {head[1]} | meaning |", "|---|---|---|---|"]
            lines += [
                f"| `{name}` | {number} | {_linked(kind, known)} | {meaning} |"
                for name, number, kind, meaning in block.rows
            ]
    return "\n".join(lines) + "\n"


def parse(text: str) -> Protocol:
    """Read a proto file in our own style: one statement a line, comments above it or behind it.

    Raises:
        ValueError: a statement is of no form that is known here.
    """
    protocol = Protocol()
    comment: list[str] = []
    one_of = ""
    for line in _statements(text):
        statement, _, behind = (part.strip() for part in line.partition("//"))
        if not statement:
            comment.append(behind)
            continue
        meaning = _escaped(" ".join(filter(None, [*comment, behind])))
        if statement.startswith("syntax"):
            protocol.conventions = _as_markdown(comment)
        elif found := _CALL.fullmatch(statement):
            name, sent, request, answered, response = found.groups()
            protocol.calls.append(
                (name, (sent or "") + request, (answered or "") + response, meaning)
            )
        elif found := _BLOCK.fullmatch(statement):
            kind, name, _ = found.groups()
            if kind == "oneof":
                one_of = f"one of `{name}`"
            elif kind != "service":
                protocol.blocks.append(Block(kind, name, meaning))
        elif found := _FIELD.fullmatch(statement):
            label, kind, name, number = found.groups()
            cells = (name, number, (label or "") + (kind or ""))
            text_of_cell = ": ".join(filter(None, [one_of, meaning]))
            protocol.blocks[-1].rows.append((*cells, text_of_cell))
        elif statement == "}":
            one_of = ""
        elif not statement.startswith(("package", "import")):
            raise ValueError(f"attention.proto: cannot read {statement!r}")
        comment = []
    return protocol


def _statements(text: str) -> list[str]:
    """Lines without indentation; a call that was broken over several lines is one again."""
    joined: list[str] = []
    for line in filter(None, (line.strip() for line in text.splitlines())):
        if joined and joined[-1].startswith("rpc ") and not joined[-1].endswith(";"):
            joined[-1] += " " + line
        else:
            joined.append(line)
    return joined


def _escaped(text: str) -> str:
    """Plain text as Markdown shows it; code between backticks stays code."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([\[\]|*<_])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def _as_markdown(comment: list[str]) -> str:
    """The comment at the top of the file; its list keeps its items."""
    lines: list[str] = []
    for line in comment:
        if line.startswith("* ") and lines and not lines[-1].startswith("* "):
            lines.append("")
        lines.append(line)
    return "\n".join(lines)


def _linked(kind: str, known: set[str]) -> str:
    word = kind.split()[-1] if kind else ""
    label = f"`{kind}`" if kind else ""
    return f"[{label}](#{word.lower()})" if word in known else label
