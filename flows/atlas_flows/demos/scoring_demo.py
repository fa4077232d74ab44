"""CTs in; attention maps, priority list and a report page out: the demo of steps ② to ④.

It runs a stack of its own, with its own data and ports, and stops it whatever happens.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from atlas_core.catalog import Catalog
from atlas_core.errors import InvalidInput
from atlas_core.records import RankBy, Reading
from atlas_core.store import CaseStore
from atlas_embedded import stack
from atlas_embedded.settings import ComponentName, EmbeddedSettings
from rich.console import Console

from atlas_flows.commands.cases import counting, show_import
from atlas_flows.commands.scoring import run_score, show_summary
from atlas_flows.commands.terminal import print_table, write_text
from atlas_flows.demos.demo_stack import (
    demo_settings,
    exclusive_demo,
    signals_ignored,
    sigterm_as_interrupt,
    use_stack,
)
from atlas_flows.reports import RunFacts, StepTime
from atlas_flows.runs import CasesFailed
from atlas_flows.scoring import ScoreRequest, priority_list
from atlas_flows.settings import Places

PARTS: tuple[ComponentName, ...] = ("triton", "attention", "prefect")
"""Runs happen in this process, so that nothing has to serve flows."""

HARD_SHARE = 0.25
"""Of the demo's phantoms, so that a dozen cases hold a few hard ones."""

CASES_WITH_PICTURES = 5

IN_FLIGHT = 2
"""One case is computed while another is read or written."""

PATIENCE_S = 60.0
"""The demo's own services are on this machine and were healthy a moment ago."""


@dataclass(frozen=True)
class DemoRequest:
    """What the demo shows.

    Attributes:
        ct: folder or file of the user's own CTs; None for phantoms.
        cases, seed: how many phantoms, and which.
        output: folder of report.html, ranking.json and ranking.csv.
    """

    ct: Path | None
    cases: int
    seed: int
    output: Path


@dataclass
class _Run:
    """One run of the demo: its stack, and what the report says of it."""

    request: DemoRequest
    settings: EmbeddedSettings
    console: Console
    steps: list[StepTime] = field(default_factory=list)
    refused: tuple[tuple[str, str], ...] = ()

    @property
    def places(self) -> Places:
        return Places.read(self.settings.home)

    @property
    def phantoms(self) -> Path:
        """Kept between runs: the same seed gives the same phantoms."""
        return self.settings.home / f"phantoms-{self.request.seed}-{self.request.cases}"

    @property
    def dataset(self) -> str:
        return "phantoms" if self.request.ct is None else "demo"

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Times a step and prints it; the block appends what was done to the list that it gets."""
        self.console.print(f"[bold]{name}[/bold]")
        started = time.monotonic()
        words: list[str] = []
        yield words
        seconds = time.monotonic() - started
        self.steps.append(StepTime(name, seconds, "; ".join(words)))
        self.console.print(f"  {'; '.join(words) or 'done'} ({seconds:.1f} s)", highlight=False)


def run_demo(places: Places, request: DemoRequest) -> Path:
    """Run everything once; the last line on the terminal names the page.

    Returns:
        The page.

    Raises:
        AtlasError: what went wrong; the stack is stopped all the same.
        Conflict: another demo runs in the same home.
    """
    home = places.embedded.home / "demo"
    places.embedded.make_home()
    home.mkdir(exist_ok=True)
    console = Console(highlight=False)
    with exclusive_demo(home), sigterm_as_interrupt():
        # A demo that was killed may still run; its ports must be free before ours are chosen.
        stack.down(EmbeddedSettings(home=home))
        delete_results(home)
        settings = demo_settings(home, PARTS)
        use_stack(settings)
        run = _Run(request, settings, console)
        page = _run(run)
    console.print(f"report: {page}", soft_wrap=True, markup=False)
    return page


def _run(run: _Run) -> Path:
    started = time.monotonic()
    with Catalog.open(run.settings.catalog_url) as catalog:
        store = CaseStore(run.settings.store)
        _import_cases(run, catalog, store)
        try:
            with run.step("stack") as words:
                parts = stack.up(run.settings, on_event=lambda line: run.console.print(f"  {line}"))
                _register(run, catalog)
                words.append(", ".join(f"{part.name} {part.state}" for part in parts))
            _score(run)
            _show_list(run, catalog)
            page = _report(run, catalog, store)
        finally:
            with signals_ignored():
                run.console.print("stopping the stack")
                stack.down(run.settings)
    _show_times(run, time.monotonic() - started)
    return page


def _import_cases(run: _Run, catalog: Catalog, store: CaseStore) -> None:
    from atlas_core.importing import import_folder

    folder = run.request.ct
    if folder is None:
        folder = run.phantoms
        _make_phantoms(run)
    with run.step("import") as words, counting("importing") as on_progress:
        summary = import_folder(
            folder,
            run.dataset,
            None if run.request.ct else "phantoms",
            catalog=catalog,
            store=store,
            on_progress=lambda progress: on_progress(progress.done, progress.total),
        )
        words.append(f"{len(summary.taken)} cases, {len(summary.refused)} refused")
    show_import(summary)
    run.refused = tuple((note.source, note.reason) for note in summary.refused)
    if not catalog.cases():
        raise InvalidInput(
            "no CT could be imported, so there is nothing to show",
            remedy="see the reasons above, or run the demo without --ct",
        )


def _make_phantoms(run: _Run) -> None:
    from atlas_core.phantoms import write_phantoms

    with run.step("phantoms") as words, counting("phantoms") as on_progress:
        entries = write_phantoms(
            run.phantoms,
            run.request.cases,
            run.request.seed,
            hard_share=HARD_SHARE,
            labels="none",
            truth_folder=run.phantoms.with_name(f"{run.phantoms.name}-truth"),
            on_progress=on_progress,
        )
        hard = sum(entry["kind"] != "ordinary" for entry in entries)
        words.append(f"{len(entries)} generated cases, {hard} hard on purpose")


def _register(run: _Run, catalog: Catalog) -> None:
    from atlas_embedded.triton_models import repository_of

    from atlas_flows.models import register_installed

    register_installed(repository_of(run.settings), run.settings.models_dir, catalog)


def _score(run: _Run) -> None:
    with run.step("score") as words:
        try:
            summary = run_score(
                run.places, ScoreRequest(), in_flight=IN_FLIGHT, patience_s=PATIENCE_S
            )
        except CasesFailed as failed:
            # A demo on somebody's own CTs shows what it can, and says what it could not.
            summary = failed.summary
            show_summary(summary)
            run.refused += tuple((case.case_id, case.message) for case in summary.failures)
            if len(summary.failures) == len(summary.outcomes):
                raise
        count = len(summary.outcomes) - len(summary.failures)
        words.append(f"{count} cases predicted by three models, fused and ranked")


def _show_list(run: _Run, catalog: Catalog) -> None:
    cases = catalog.ranking(Reading.PAPER, by=RankBy.DISAGREEMENT)
    output = run.request.output
    listed = priority_list.as_json(cases, Reading.PAPER, RankBy.DISAGREEMENT)
    write_text(output / "ranking.json", listed)
    write_text(output / "ranking.csv", priority_list.as_csv(cases, catalog.organ_scheme().names))
    print_table(
        "Priority list",
        priority_list.as_rows(cases[:20], RankBy.DISAGREEMENT),
        numbers=priority_list.NUMBERS,
    )


def _report(run: _Run, catalog: Catalog, store: CaseStore) -> Path:
    from atlas_flows.reports import ReportScope, build_report

    page = run.request.output / "report.html"
    with run.step("report") as words:
        scope = ReportScope(top=CASES_WITH_PICTURES)
        write_text(page, build_report(catalog, store, scope, _facts(run, catalog)))
        words.append(f"{page.stat().st_size / 2**20:.1f} MiB, one file")
    return page


def _facts(run: _Run, catalog: Catalog) -> RunFacts:
    steps = tuple(run.steps)
    if run.request.ct is not None:
        return RunFacts("Priority list of your CTs", steps, refused=run.refused)
    return RunFacts(
        "Priority list of generated phantoms",
        steps,
        refused=run.refused,
        kinds=_kinds(run, catalog),
    )


def _kinds(run: _Run, catalog: Catalog) -> Mapping[str, str]:
    from atlas_flows.evaluation import kinds_of_cases

    return kinds_of_cases(run.phantoms, catalog)


def _show_times(run: _Run, total_s: float) -> None:
    rows = [{"step": step.name, "seconds": f"{step.seconds:.1f}"} for step in run.steps]
    rows.append({"step": "total", "seconds": f"{total_s:.1f}"})
    print_table("Wall time", rows, numbers=("seconds",))


def delete_results(home: Path) -> None:
    """Delete results and models of earlier demos, but not phantoms and compiled graphs."""
    for folder in ("store", "triton-repository", "models", "runs"):
        shutil.rmtree(home / folder, ignore_errors=True)
    for path in home.glob("catalog.sqlite*"):
        path.unlink()
