"""What a command that works through many cases shows: its progress, and what failed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from atlas_flows.commands.terminal import print_table, progress_bar, show_error

if TYPE_CHECKING:
    from rich.console import Console

    from atlas_flows.runs import CaseOutcome, RunSummary


@contextmanager
def case_progress(verb: str, logger: logging.Logger | None = None) -> Iterator[None]:
    """Within the block, runs over cases show a progress bar and their failures on stderr.

    Args:
        verb: what is done to the cases, as a participle.
        logger: of the run; its warnings are shown as well.
    """
    from atlas_flows.runs import observed_by

    with progress_bar(verb) as progress:
        task = progress.add_task("cases", total=None)

        def show(done: int, total: int, outcome: CaseOutcome) -> None:
            progress.update(task, completed=done, total=total)
            if not outcome.good:
                progress.console.print(f"{outcome.case_id}: {outcome.message}", style="red")

        with ExitStack() as shown:
            shown.enter_context(observed_by(show))
            if logger is not None:
                shown.enter_context(_warnings_to(progress.console, logger))
            yield


def show_failures(summary: RunSummary, done: str, most: int | None = None) -> None:
    """A table of the first `most` failures (None: all) and why; nothing where there are none.

    Args:
        done: what should have happened to them, as a participle.
    """
    if not summary.failures:
        return
    rows = [
        {"case": case.case_id, "outcome": case.outcome.value, "why": case.message}
        for case in summary.failures[:most]
    ]
    print_table(f"Not {done}", rows)
    show_error(f"{len(summary.failures)} cases are not {done}")


@contextmanager
def _warnings_to(terminal: Console, logger: logging.Logger) -> Iterator[None]:
    """Shows what the run is waiting for; Prefect's own console output is switched off."""
    from rich.logging import RichHandler

    handler = RichHandler(console=terminal, show_time=False, show_path=False)
    handler.setLevel(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
