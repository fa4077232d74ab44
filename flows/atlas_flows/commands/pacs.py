"""`atlasloop pacs`: series in from a hospital's PACS, labels back, and where each stands."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atlas_flows.commands.dicom import (
    AttentionOption,
    ChoiceName,
    ChoiceOption,
    KindName,
    KindOption,
)
from atlas_flows.commands.options import JsonOption, ReadingName
from atlas_flows.commands.terminal import (
    console,
    places,
    print_table,
    progress_bar,
    show_error,
    write_text,
)

if TYPE_CHECKING:
    from atlas_core.pacs import Inbox, Transfer

    from atlas_flows.runs import RunSummary

app = typer.Typer(
    help="Series in from a PACS, de-identified on arrival; labels back.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

ROWS_SHOWN = 100
"""Series or cases that are listed; --json has all of them."""

LOOK_EVERY_S = 2.0
"""How often the receiver looks for series that are whole."""

AgainOption = Annotated[bool, typer.Option("--again", help="Also what is there already.")]


@app.command("pull")
def pull(
    context: typer.Context,
    study: Annotated[
        list[str] | None, typer.Option(help="StudyInstanceUID; several times.")
    ] = None,
    patients: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="File with one PatientID a line."),
    ] = None,
    accessions: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="File with one AccessionNumber a line."),
    ] = None,
    dates: Annotated[
        str, typer.Option(help="Of the studies: YYYYMMDD or YYYYMMDD-YYYYMMDD, either end open.")
    ] = "",
    body_part: Annotated[str, typer.Option(help="BodyPartExamined, as ABDOMEN.")] = "",
    max_thickness: Annotated[
        float | None, typer.Option(min=0.01, help="Thickest slices that are taken, in mm.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="Cases of this dataset. Default: ATLASLOOP_PACS_DATASET."),
    ] = None,
    again: AgainOption = False,
    as_json: JsonOption = False,
) -> None:
    """Bring CT series of the PACS here, by DICOMweb or by C-FIND and C-MOVE.

    De-identified on arrival; what is here is passed over, and what came in part is completed. The
    PACS is named by settings (ATLASLOOP_PACS_…). Exit status 1 if some series are no cases.

    Example: atlasloop pacs pull --patients patients.txt --body-part ABDOMEN --dataset hospital
    """
    from atlas_flows.pacs import PacsSite, pull_series, query_of

    query = query_of(
        studies=study or (),
        patient_file=patients,
        accession_file=accessions,
        dates=dates,
        body_part=body_part,
        max_thickness_mm=max_thickness,
    )
    with PacsSite.open(places(context), dataset) as site, progress_bar("pulling") as progress:
        task = progress.add_task("series", total=None)
        summary = pull_series(
            site,
            query,
            again=again,
            on_outcome=lambda done, total, _: progress.update(task, completed=done, total=total),
        )
    _show(summary, "series are cases", "imported", as_json)


@app.command("push")
def push(
    context: typer.Context,
    case: Annotated[
        list[str] | None, typer.Argument(help="Case ids; none: all that came from the PACS.")
    ] = None,
    kind: KindOption = None,
    label: ChoiceOption = ChoiceName.PREFERRED,
    reading: AttentionOption = ReadingName.PAPER,
    again: AgainOption = False,
    as_json: JsonOption = False,
) -> None:
    """Send labels back to the studies that their cases came from, as DICOM SEG; on request also
    contours, attention and organ volumes.

    What is there is not sent again. Exit status 1 if some could not be sent.

    Example: atlasloop pacs push hospital_32200aede2fb7c070c36938f49f2e1cd --kind seg --kind report
    """
    from atlas_core.dicom_export import ExportedLabels, ObjectKind
    from atlas_core.records import Reading

    from atlas_flows.pacs import PacsSite, push_cases

    with PacsSite.open(places(context)) as site, progress_bar("pushing") as progress:
        task = progress.add_task("cases", total=None)
        summary = push_cases(
            site,
            case or (),
            kinds={ObjectKind(one) for one in kind or (KindName.SEG,)},
            label=ExportedLabels(label),
            reading=Reading(reading),
            again=again,
            on_outcome=lambda done, total, _: progress.update(task, completed=done, total=total),
        )
    _show(summary, "cases pushed", "pushed", as_json)


@app.command("list")
def list_transfers(context: typer.Context, as_json: JsonOption = False) -> None:
    """Where each series stands that was asked for or sent to us, the newest first, by pseudonym.

    Example: atlasloop pacs list
    """
    from atlas_core.catalog import Catalog
    from atlas_core.pacs import Transfers

    here = places(context)
    here.embedded.make_home()
    with Catalog.open(here.catalog_url) as catalog:
        transfers = Transfers(catalog).all()
    if as_json:
        lines = [transfer.model_dump_json() for transfer in transfers]
        write_text(None, f"[{', '.join(lines)}]")
        return
    print_table(f"{len(transfers)} series", [_row(one) for one in transfers[:ROWS_SHOWN]])


@app.command("receive")
def receive(context: typer.Context) -> None:
    """Receive what a PACS or a scanner sends to us (C-STORE), until it is stopped.

    A series is imported when all images are here that the PACS says it has, or when none came for
    ATLASLOOP_PACS_QUIET_S seconds. Only AE titles in ATLASLOOP_PACS_CALLERS are let in.

    Example: atlasloop pacs receive
    """
    from atlas_core.json_logs import log_to_stderr
    from atlas_core.pacs import Receiver

    from atlas_flows.pacs import PacsSite

    log_to_stderr("INFO")
    stopped = _stopped_by_signals()
    with PacsSite.open(places(context)) as site, Receiver(site.settings, site.inbox.take):
        console().print(
            f"receiving as {site.settings.title} on {site.settings.listen} from "
            f"{', '.join(site.settings.allowed_callers)}"
        )
        while not stopped.wait(LOOK_EVERY_S):
            _take_in(site.inbox, site.settings.quiet_s)


def _take_in(inbox: Inbox, quiet_s: float) -> None:
    """What is whole; a store that is away is said, and asked again at the next look."""
    from atlas_core.errors import AtlasError

    try:
        inbox.take_in_quiet(quiet_s, _say)
    except AtlasError as error:
        show_error(str(error))


def _say(transfer: Transfer) -> None:
    console().print(
        f"{transfer.series} {transfer.state} {transfer.case_id or transfer.reason}",
        soft_wrap=True,
        markup=False,
    )


def _stopped_by_signals() -> threading.Event:
    import signal

    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    return stopped


def _row(transfer: Transfer) -> dict[str, str]:
    return {
        "series": f"…{transfer.series[-12:]}",
        "patient": transfer.patient,
        "dataset": transfer.dataset,
        "state": transfer.state.value,
        "case": transfer.case_id or "",
        "pushed": ", ".join(transfer.pushed),
        "why": transfer.reason,
    }


def _show(summary: RunSummary, what: str, done: str, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(f"{summary.model_dump_json(indent=2)}\n")
    else:
        good = sum(outcome.good for outcome in summary.outcomes)
        console().print(
            f"{good} {what}, {summary.skipped} since before, {len(summary.failures)} not "
            f"({summary.seconds:.1f} s)"
        )
        from atlas_flows.commands.case_progress import show_failures

        show_failures(summary, done, ROWS_SHOWN)
    if summary.failures:
        raise typer.Exit(1)
