"""`atlasloop export-dicom`: labels, attention and volumes of a case as DICOM files."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from atlas_flows.commands.options import ReadingName
from atlas_flows.commands.terminal import console, places


# As `ObjectKind` and `ExportedLabels` of `atlas_core.dicom_export`, which `--help` need not load (a
# test compares).
class KindName(StrEnum):
    """What is written."""

    SEG = "seg"
    RTSTRUCT = "rtstruct"
    MAP = "map"
    REPORT = "report"


class ChoiceName(StrEnum):
    """Which labels."""

    ASSEMBLED = "assembled"
    REVISED = "revised"
    PSEUDO = "pseudo"
    ORIGINAL = "original"
    PREFERRED = "preferred"


KindOption = Annotated[
    list[KindName] | None,
    typer.Option(
        help="seg: segmentation. rtstruct: contours. map: attention of each organ. report: "
        "organ volumes, with the segmentation. Several times; default: seg."
    ),
]
AttentionOption = Annotated[
    ReadingName, typer.Option("--reading", help="Attention of the scores under this reading.")
]
ChoiceOption = Annotated[
    ChoiceName,
    typer.Option(
        "--label",
        help="Which labels; preferred: of each organ the original, else the revised, else the "
        "pseudo label.",
    ),
]


def export_dicom(
    context: typer.Context,
    case: Annotated[str, typer.Argument(help="The case.")],
    folder: Annotated[Path, typer.Argument(help="New folder.", file_okay=False)],
    series: Annotated[
        Path,
        typer.Option(help="Folder of the series that it was imported from.", file_okay=False),
    ],
    kind: KindOption = None,
    label: ChoiceOption = ChoiceName.ASSEMBLED,
    reading: AttentionOption = ReadingName.PAPER,
) -> None:
    """A case's labels, attention maps and organ volumes as DICOM, on the slices of its series.

    The folder appears when all of it is written.

    Example: atlasloop export-dicom clinic_0123 out --series /data/studies/17 --kind seg
    """
    from atlas_core.catalog import Catalog
    from atlas_core.dicom import read_headers
    from atlas_core.dicom_export import ExportedLabels, ObjectKind, objects_of_case, write_objects
    from atlas_core.imaging.dicom_reader import the_series
    from atlas_core.records import Reading
    from atlas_core.store import CaseStore

    here = places(context)
    here.embedded.make_home()
    with Catalog.open(here.catalog_url) as catalog:
        objects = objects_of_case(
            catalog,
            CaseStore(here.store),
            case,
            read_headers(the_series(series).files),
            kinds={ObjectKind(one) for one in kind or (KindName.SEG,)},
            label=ExportedLabels(label),
            reading=Reading(reading),
        )
    write_objects(folder, objects)
    console().print(f"{len(objects)} objects in {folder}: {', '.join(objects)}")
