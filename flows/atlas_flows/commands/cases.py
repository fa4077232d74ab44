"""`import`, `presets` and `phantoms`: where cases come from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from atlas_flows.commands.options import JsonOption, OrgansOption
from atlas_flows.commands.terminal import console, places, print_table, progress_bar, write_text

if TYPE_CHECKING:
    from atlas_core.importing import ImportSummary, Note

NOTES_SHOWN = 50
"""Files named one by one; `--json` has all."""


def import_cases(
    context: typer.Context,
    path: Annotated[
        Path, typer.Argument(exists=True, help="Folder (or one file) with CTs and their masks.")
    ],
    dataset: Annotated[str, typer.Option(help="Name under which the cases are kept.")],
    preset: Annotated[
        str | None,
        typer.Option(
            help="Label ids and organs of a known dataset (see presets), or a YAML file with them."
        ),
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option(help="Of the dataset, as SPDX id where it has one; default: the preset's."),
    ] = None,
    organs: OrgansOption = None,
    resample: Annotated[
        bool,
        typer.Option(
            "--resample",
            help="Bring masks on another grid onto their CT's, and DICOM slices with gantry tilt "
            "or uneven gaps onto a regular one.",
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also take volumes that do not look like CTs.")
    ] = False,
    affine: Annotated[
        Literal["sform", "qform"] | None,
        typer.Option(help="Which affine to believe where a header has two of different size."),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="CSV of CTs and their labels; nothing else is taken."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Bring CTs (and masks, if any) into catalog and case store.

    Takes a folder of NIfTI files, case folders in the AbdomenAtlas layout, nnU-Net raw datasets and
    DICOM series. What was imported before is recognised by its content. One bad file never stops
    the rest. Exit status 1 if nothing could be taken.

    Example: atlasloop import /data/BTCV --dataset BTCV --preset btcv
    """
    from atlas_core.catalog import Catalog
    from atlas_core.importing import import_folder
    from atlas_core.store import CaseStore

    here = places(context)
    here.embedded.make_home()
    with Catalog.open(here.catalog_url) as catalog, counting("importing") as on_progress:
        here.choose_organs(catalog, organs)
        summary = import_folder(
            path,
            dataset,
            preset,
            catalog=catalog,
            store=CaseStore(here.store),
            licence=licence,
            force=force,
            resample=resample,
            affine=affine,
            pairs=pairs,
            on_progress=lambda progress: on_progress(progress.done, progress.total),
        )
    if as_json:
        write_text(None, json.dumps(asdict(summary), indent=2))
    else:
        show_import(summary)
    if not summary.taken and not summary.present:
        raise typer.Exit(1)


def presets(
    context: typer.Context,
    as_json: JsonOption = False,
) -> None:
    """List the datasets whose label ids are known, with those of the atlas's organs that they have.

    Example: atlasloop presets
    """
    from atlas_core.catalog import Catalog
    from atlas_core.importing import shipped_presets

    here = places(context)
    here.embedded.make_home()
    with Catalog.open(here.catalog_url) as catalog:
        scheme = catalog.organ_scheme()
    known = list(shipped_presets().values())
    organs = {p.name: p.within(scheme).organs for p in known}
    if as_json:
        rows = [
            {"name": p.name, "title": p.title, "licence": p.licence, "organs": organs[p.name]}
            for p in known
        ]
        write_text(None, json.dumps(rows, indent=2))
        return
    print_table(
        f"{len(known)} presets",
        [
            {
                "preset": p.name,
                "dataset": p.title,
                "licence": p.licence,
                "annotated organs": ", ".join(organs[p.name]),
            }
            for p in known
        ],
    )


def phantoms(
    folder: Annotated[
        Path, typer.Argument(file_okay=False, help="Where to write; complete cases are kept.")
    ],
    cases: Annotated[int, typer.Option(min=1, help="How many.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Everything follows from it.")] = 0,
    hard: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of deliberately hard cases.")
    ] = 0.1,
    tail: Annotated[
        bool,
        typer.Option(
            "--tail",
            help="Hard cases of all kinds that archives hold: children, mirrored patients, wrong "
            "headers, cropped or moved scans, thick slices, metal.",
        ),
    ] = False,
    labels: Annotated[
        Literal["none", "partial", "truth"],
        typer.Option(
            help="Masks beside the CTs: none, those of partially labelled datasets, or all."
        ),
    ] = "none",
    columns: Annotated[
        int, typer.Option(min=16, max=1024, help="Voxels across and along a slice.")
    ] = 160,
    anatomies: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True,
            help="Draw the CTs from this person's label map, or folder of masks as "
            "TotalSegmentator writes it; may be repeated.",
        ),
    ] = None,
    anatomy_organs: Annotated[
        str | None,
        typer.Option(
            help="Organs of these label maps: a name, or a YAML file. Default: TotalSegmentator's."
        ),
    ] = None,
) -> None:
    """Generate abdominal CTs with all nine organs, and their truth.

    By default the bodies are made up. With --anatomies they are those of people, deformed, in
    contrast phases and fields of view of their own: what networks learn from them holds on real
    CTs. What they may be used for follows from the licence of the label maps.

    FOLDER/PHANTOM_…/ct.nii.gz, FOLDER/phantoms.json (kind, phase and volumes of each), and the true
    label maps in FOLDER/truth, apart from the CTs so that an import does not take them for original
    labels.

    Example: atlasloop phantoms phantoms --cases 20 --seed 7
    """
    from atlas_core.organs import read_scheme
    from atlas_core.phantoms import ANATOMY_ORGANS, PhantomGrid, read_anatomy, write_phantoms

    from atlas_flows.evaluation import TRUTH_FOLDER

    structures = read_scheme(anatomy_organs or ANATOMY_ORGANS)
    people = [read_anatomy(path, structures) for path in anatomies or ()]
    for person in people:
        if person.unknown:
            console().print(
                f"{person.name}: taken for muscle, as what they are made of is not known: "
                f"{', '.join(person.unknown)}",
                markup=False,
            )
    with counting("phantoms") as on_progress:
        entries = write_phantoms(
            folder,
            cases,
            seed,
            hard_share=hard,
            tail=tail,
            labels=labels,
            truth_folder=folder / TRUTH_FOLDER,
            grid=PhantomGrid(columns=columns),
            anatomies=people,
            on_progress=on_progress,
        )
    difficult = sum(entry["kind"] != "ordinary" for entry in entries)
    console().print(
        f"{len(entries)} phantoms in {folder}, {difficult} of them hard; truth in "
        f"{folder / TRUTH_FOLDER}"
    )


def show_import(summary: ImportSummary) -> None:
    """What was imported, in one sentence, and what was not, and why."""
    from atlas_core.importing import Note

    labels = sum(len(case.organs) for case in (*summary.taken, *summary.present))
    console().print(
        f"{len(summary.taken)} cases taken into {summary.dataset}, {len(summary.present)} were "
        f"there already, {len(summary.refused)} refused; {labels} original labels are new"
    )
    remarks = tuple(
        Note(case.source, remark)
        for case in (*summary.taken, *summary.present)
        for remark in case.remarks
    )
    look_at = (*summary.warnings, *remarks)
    for title, notes in (("refused", summary.refused), ("worth a look", look_at)):
        for note in notes[:NOTES_SHOWN]:
            console().print(f"{title}: {note.source}: {note.reason}", soft_wrap=True, markup=False)
        if len(notes) > NOTES_SHOWN:
            console().print(f"{title}: {len(notes) - NOTES_SHOWN} more; --json has all")
    for reason, sources in _by_reason(summary.skipped).items():
        shown = ", ".join(sources[:3]) + (", …" if len(sources) > 3 else "")
        line = f"left out: {len(sources)} × {reason} ({shown})"
        console().print(line, soft_wrap=True, markup=False)
    fates = Counter(file.fate.value for file in summary.files)
    counted = ", ".join(f"{count} {fate}" for fate, count in fates.items())
    console().print(f"{len(summary.files)} files: {counted}; --json says what became of each")


def _by_reason(notes: Sequence[Note]) -> dict[str, list[str]]:
    """Files by why they were skipped: beside one CT there may be a hundred masks."""
    groups: dict[str, list[str]] = {}
    for note in notes:
        groups.setdefault(note.reason, []).append(note.source)
    return groups


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr; the value takes (done, total)."""
    with progress_bar(what, remaining=False) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
