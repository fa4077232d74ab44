"""Flow `import`: CTs and their labels out of the landing folder, as `atlasloop import` takes them.

Names of files may hold names of patients: the Prefect server gets case ids and numbers, and what
became of every file lies in the landing folder, for this site alone.
"""

# No `from __future__ import annotations` here: Prefect resolves the flow's annotations outside of
# this module.

import json
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from atlas_core.catalog import Catalog
from atlas_core.errors import InvalidInput
from atlas_core.imaging import AffineSource
from atlas_core.importing import ImportSummary, import_folder, shipped_presets
from atlas_core.records import DatasetName
from atlas_core.store import CaseStore
from prefect import flow, runtime
from prefect.artifacts import create_markdown_artifact
from pydantic import Field

from atlas_flows.runs import FilePath, SchemeName, landing_path, write_file
from atlas_flows.runs.progress_artifact import ProgressArtifact
from atlas_flows.settings import Places

REPORTS = "import-reports"
"""Folder of the landing folder for what became of every file."""

CASES_SHOWN = 1000
"""New cases that the artifact names."""


def _run_name() -> str:
    return str(runtime.flow_run.parameters["dataset"])


@flow(
    name="import",
    description="Brings CTs (and masks, if any) from the landing folder into catalog and case "
    "store: NIfTI files, case folders in the AbdomenAtlas layout, nnU-Net raw datasets, DICOM "
    "series. What was imported before is recognised by its content; one bad file never stops the "
    "rest.",
    flow_run_name=_run_name,
    persist_result=False,
)
def import_cases(
    folder: FilePath,
    dataset: DatasetName,
    preset: FilePath | None = None,
    licence: Annotated[str, Field(min_length=1, max_length=1000)] | None = None,
    organs: SchemeName | None = None,
    resample: bool = False,
    force: bool = False,
    affine: AffineSource | None = None,
    pairs: FilePath | None = None,
) -> dict[str, int]:
    """Take what is in a folder; the number of cases taken, present and refused.

    Args:
        folder: Folder or file below the landing folder, as datasets/LiTS.
        dataset: Name under which the cases are kept.
        preset: Label ids and organs of a known dataset (`atlasloop presets` lists them), or a YAML
            file with them below the landing folder. Empty: the dataset's own, or our names.
        licence: Of the dataset, as SPDX id where it has one. Empty: the preset's.
        organs: Organs of a new atlas, by the name of a shipped scheme. Empty: those it has.
        resample: Bring masks on another grid onto their CT's, and DICOM slices with gantry tilt or
            uneven gaps onto a regular one.
        force: Also take volumes that do not look like CTs.
        affine: Which affine to believe where a header has two of different size. Empty: refuse such
            a file.
        pairs: CSV below the landing folder, of CTs and their labels; nothing else is taken then.

    Raises:
        InvalidInput: nothing could be taken, or a path leads out of the landing folder.
        NotFound: nothing lies there, or no such preset.
        Conflict: the dataset is on record with another licence, or the atlas with other organs.
    """
    places = Places.read()
    if preset is not None and preset not in shipped_presets():
        preset = str(landing_path(preset, places))
    with (
        Catalog.open(places.catalog_url) as catalog,
        ProgressArtifact(1, "import-progress", f"Import into {dataset}") as shown,
    ):
        places.choose_organs(catalog, organs)
        summary = import_folder(
            landing_path(folder, places),
            dataset,
            preset,
            catalog=catalog,
            store=CaseStore(places.store),
            licence=licence,
            force=force,
            resample=resample,
            affine=affine,
            pairs=None if pairs is None else landing_path(pairs, places),
            on_progress=lambda progress: shown.show(progress.done, progress.total),
        )
    report = _write_report(summary, places.landing)
    create_markdown_artifact(
        import_markdown(summary, report),
        key="import-summary",
        description=f"Import into {dataset}",
    )
    counts = _counts(summary)
    if not summary.taken and not summary.present:
        raise InvalidInput(
            "no case was taken",
            case=dataset,
            got=", ".join(f"{number} {what}" for what, number in counts.items()),
            remedy=f"{report} in the landing folder says why, file by file",
        )
    return counts


def import_markdown(summary: ImportSummary, report: str) -> str:
    """What was taken and how much was not; nothing that files or folders are called.

    Args:
        report: where the rest stands, relative to the landing folder.
    """
    lines = [f"| {summary.dataset} | |", "|---|---|"]
    lines += [f"| {what} | {number} |" for what, number in _counts(summary).items()]
    fates = Counter(file.fate.value for file in summary.files)
    lines += ["", "Files: " + (", ".join(f"{n} {fate}" for fate, n in fates.items()) or "none")]
    lines += ["", f"What became of each file, and why, is in `{report}` in the landing folder."]
    if summary.taken:
        lines += ["", "| new case | original labels |", "|---|---|"]
        lines += [
            f"| {case.case_id} | {', '.join(case.organs) or '–'} |"
            for case in summary.taken[:CASES_SHOWN]
        ]
        left = len(summary.taken) - CASES_SHOWN
        lines += ["", f"and {left} more"] if left > 0 else []
    return "\n".join(lines)


def _counts(summary: ImportSummary) -> dict[str, int]:
    return {
        "taken": len(summary.taken),
        "there already": len(summary.present),
        "refused": len(summary.refused),
        "worth a look": len(summary.warnings),
    }


def _write_report(summary: ImportSummary, landing: Path) -> str:
    """For the site alone; its path relative to the landing folder."""
    folder = landing / REPORTS
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{summary.dataset}-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}.json"
    write_file(path, json.dumps(asdict(summary), indent=2) + "\n", mode=0o600)
    return str(path.relative_to(landing))
