"""The reference of the command line, as Typer itself writes it out of the application."""

from __future__ import annotations

import typer
from atlas_flows.cli import app
from typer.cli import get_docs_for_click
from typer.main import get_command

INTRODUCTION = """\
Every command prints its options with `--help`; most print one JSON object with `--json`. Exit
status: 0; 1 when the command did its work and the answer is "no" (some cases failed); 2 for errors,
which are one line on stderr; 130 after Ctrl-C.

Accounts of the review service are managed by `python -m atlas_review add-user`, `add-token` and
`remove` ([administer the review service](../how-to/administer-review.md)).

"""


def markdown() -> str:
    """One section per command and subcommand."""
    command = get_command(app)
    context = typer.Context(command, info_name="atlasloop")
    page = get_docs_for_click(obj=command, ctx=context, name="atlasloop", title="Command line")
    title, rest = page.split("\n", 1)
    return f"{title}\n\n{INTRODUCTION}{rest}"
