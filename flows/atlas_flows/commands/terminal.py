"""What commands share: common options, settings, and output to a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from atlas_flows.settings import Places


PIPED_WIDTH = 160
"""Columns of a table that goes into a file or a log, whose reader wraps lines itself."""


@dataclass(frozen=True)
class Choices:
    """Options given before the command's name."""

    home: Path | None = None
    port_base: int | None = None
    debug: bool = False


def places(context: typer.Context) -> Places:
    """Settings of this process: environment variables, and options of the command line.

    Raises:
        ConfigurationError: a setting that cannot work.
    """
    from atlas_flows.settings import Places

    chosen = context.ensure_object(Choices)
    return Places.read(chosen.home, chosen.port_base)


def console(*, stderr: bool = False) -> Console:
    """A terminal; plain text in long lines where output is piped.

    A reader who has seen enough (``atlasloop up | head``) ends what is shown, not what is done:
    rich would exit in the midst of starting or stopping a stack.
    """
    from rich.console import Console

    class Terminal(Console):
        def on_broken_pipe(self) -> None:
            self.quiet = True
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.file.fileno())
            os.close(nowhere)

    terminal = Terminal(stderr=stderr, highlight=False)
    if not terminal.is_terminal and "COLUMNS" not in os.environ:
        terminal.width = PIPED_WIDTH
    return terminal


@contextmanager
def progress_bar(what: str, *, remaining: bool = True) -> Iterator[Progress]:
    """A bar on stderr, with counts and times.

    Args:
        what: label before the bar.
        remaining: also show the time that is left.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = [TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    if remaining:
        columns.append(TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True)) as progress:
        yield progress


def show_error(message: str) -> None:
    """One red line on stderr."""
    from rich.text import Text

    console(stderr=True).print(Text(f"error: {message}", style="red"), soft_wrap=True)


def print_table(title: str, rows: Sequence[dict[str, str]], *, numbers: Sequence[str] = ()) -> None:
    """`rows` as a table with the keys as heads; columns named in `numbers` are right-aligned."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", show_edge=False)
    for name in rows[0] if rows else ():
        # A case id broken over two lines cannot be copied.
        table.add_column(
            name,
            justify="right" if name in numbers else "left",
            overflow="fold",
            no_wrap=name == "case",
        )
    for row in rows:
        table.add_row(*row.values())
    console().print(table)


def write_text(path: Path | None, text: str) -> None:
    """Write `text` to `path`, all or nothing; without a path, to stdout.

    Raises:
        ConfigurationError: the folder cannot be written to.
    """
    if path is None:
        sys.stdout.write(text if text.endswith("\n") else f"{text}\n")
        return
    from atlas_flows.runs import write_file

    write_file(path, text)
