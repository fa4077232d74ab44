"""`atlasloop release`: the flow, run in this process and seen in the Prefect UI."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from atlas_flows.commands.case_progress import case_progress
from atlas_flows.commands.options import InFlightOption, JsonOption
from atlas_flows.commands.run_here import run_here
from atlas_flows.commands.terminal import console, places, print_table

if TYPE_CHECKING:
    from atlas_core.release import ReleaseOptions

    from atlas_flows.release import ReleaseSummary
    from atlas_flows.settings import Places

# As `CtFiles`, `ReleaseFormat` and `LicenceRisk` of `atlas_core.release`, which `--help` need not
# load (a test compares).
FormatName = Literal["atlas", "nnunet"]
CtFilesName = Literal["none", "link", "copy"]


class LicenceRiskName(StrEnum):
    """What licences may forbid."""

    UNKNOWN = "unknown"
    NO_DERIVATIVES = "no-derivatives"
    NON_COMMERCIAL_MIX = "non-commercial-mix"
    SHARE_ALIKE = "share-alike"


def release(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="New folder.", file_okay=False)],
    name: Annotated[str, typer.Option(help="Name of the release, for its card.")] = "Atlas",
    dataset: Annotated[
        list[str] | None, typer.Option(help="Only this dataset; may be given several times.")
    ] = None,
    layout: Annotated[
        FormatName,
        typer.Option("--format", help="atlas: AbdomenAtlas layout. nnunet: nnU-Net raw."),
    ] = "atlas",
    cts: Annotated[
        CtFilesName, typer.Option(help="CTs: none (masks only), link or copy.")
    ] = "none",
    accept: Annotated[
        list[LicenceRiskName] | None,
        typer.Option(help="Do it although licences forbid this; may be given several times."),
    ] = None,
    leave_out: Annotated[
        bool, typer.Option("--leave-out", help="Leave out cases that are not complete.")
    ] = False,
    patients: Annotated[
        Path | None,
        typer.Option(
            help="CSV with columns case,patient: CTs of a patient go into one split.",
            dir_okay=False,
        ),
    ] = None,
    mapping: Annotated[
        Path | None,
        typer.Option(
            help="Also write this file, for this site alone: which case each released one is.",
            dir_okay=False,
        ),
    ] = None,
    in_flight: InFlightOption = 2,
    as_json: JsonOption = False,
) -> None:
    """The assembled labels as a dataset, with splits, card and checksums (flow `release`).

    Needs the Prefect server (atlasloop up). The folder appears when all of it is written.

    Example: atlasloop release atlas-1.0 --name "Our Atlas" --dataset BTCV
    """
    from atlas_core.release import CtFiles, LicenceRisk, ReleaseFormat, ReleaseOptions

    options = ReleaseOptions(
        name=name,
        datasets=tuple(dataset or ()),
        format=ReleaseFormat(layout),
        cts=CtFiles(cts),
        accepted=frozenset(LicenceRisk(risk) for risk in accept or ()),
        leave_out=leave_out,
    )
    summary = run_release(
        places(context), folder, options, patients=patients, mapping=mapping, in_flight=in_flight
    )
    if as_json:
        sys.stdout.write(f"{summary.model_dump_json(indent=2)}\n")
    else:
        show_summary(summary)


def run_release(
    here: Places,
    folder: Path,
    options: ReleaseOptions,
    *,
    patients: Path | None,
    mapping: Path | None,
    in_flight: int,
) -> ReleaseSummary:
    """Run the flow in this process, with a progress bar.

    Raises:
        Unavailable: no Prefect server.
        NotComplete, InvalidInput, Conflict: see the flow.
    """
    with (
        run_here(here, "release"),
        case_progress("releasing"),
    ):
        from atlas_flows.release.flow import release as release_flow

        return release_flow(
            folder=str(folder.absolute()),
            name=options.name,
            datasets=list(options.datasets),
            format=options.format,
            cts=options.cts,
            accept=sorted(options.accepted),
            leave_out=options.leave_out,
            patients=None if patients is None else str(patients.absolute()),
            mapping=None if mapping is None else str(mapping.absolute()),
            in_flight=in_flight,
        )


def show_summary(summary: ReleaseSummary) -> None:
    """One sentence, and a table of what was left out and why."""
    splits = ", ".join(f"{count} {split.value}" for split, count in summary.splits.items())
    console().print(
        f"{summary.cases} cases ({splits}) of {len(summary.datasets)} datasets in {summary.folder} "
        f"({summary.seconds:.1f} s)\nchecksum of the release: {summary.checksum}"
    )
    if summary.left_out:
        rows = [{"case": case, "why": why} for case, why in summary.left_out.items()]
        print_table("Left out", rows)
