"""Flow `pull`: CT series from the site's PACS, de-identified on arrival, as cases.

Started from the form in the Prefect UI; `atlasloop pacs pull` does the same without Prefect, which
keeps the parameters of every run: patients and studies are named in files, never here.
"""

# No `from __future__ import annotations` here: Prefect resolves the flow's annotations outside of
# this module.

from pathlib import Path
from typing import Annotated

from atlas_core.records import DatasetName
from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from pydantic import Field

from atlas_flows.pacs.pacs_site import PacsSite, PullRunSummary, pull_series, query_of
from atlas_flows.runs import CasesFailed, FilePath, landing_path
from atlas_flows.runs.progress_artifact import ProgressArtifact
from atlas_flows.settings import Places

ROWS_IN_ARTIFACT = 100


@flow(
    name="pull",
    description="CT series of the PACS as cases: those of listed patients, studies or accession "
    "numbers, or of dates. De-identified on arrival. What is here is passed over; a run that was "
    "interrupted is completed by the next one.",
    persist_result=False,
)
def pull(
    dataset: DatasetName | None = None,
    patient_file: FilePath | None = None,
    study_file: FilePath | None = None,
    accession_file: FilePath | None = None,
    dates: Annotated[str, Field(pattern=r"^(\d{8})?(-(\d{8})?)?$", max_length=17)] = "",
    body_part: Annotated[str, Field(pattern=r"^[A-Z ]{0,16}$")] = "",
    max_thickness_mm: Annotated[float, Field(gt=0, le=100)] | None = None,
    again: bool = False,
) -> PullRunSummary:
    """Pull what the PACS has of the query.

    Args:
        dataset: They become cases of this dataset. Empty: ATLASLOOP_PACS_DATASET.
        patient_file: File below the landing folder with one PatientID a line.
        study_file: With one StudyInstanceUID a line.
        accession_file: With one AccessionNumber a line.
        dates: Of the studies, YYYYMMDD or YYYYMMDD-YYYYMMDD, either end open.
        body_part: BodyPartExamined, as ABDOMEN. Empty: any.
        max_thickness_mm: Thickest slices that are taken. Empty: any.
        again: Take anew what is here, was refused or has changed.

    Raises:
        CasesFailed: some series are no cases; it names them by pseudonym. All others are.
        InvalidInput: malformed dates, or a path out of the landing folder.
    """
    places = Places.read()

    def listed(text: str | None) -> Path | None:
        return None if text is None else landing_path(text, places)

    query = query_of(
        study_file=listed(study_file),
        patient_file=listed(patient_file),
        accession_file=listed(accession_file),
        dates=dates,
        body_part=body_part,
        max_thickness_mm=max_thickness_mm,
    )
    with (
        PacsSite.open(places, dataset) as site,
        ProgressArtifact(1, "pull-progress", "Series pulled") as shown,
    ):
        get_run_logger().info("asking the PACS")
        summary = pull_series(site, query, again=again, on_outcome=shown)
    create_markdown_artifact(as_markdown(summary), key="pull-summary", description="What came")
    if summary.failures:
        raise CasesFailed(summary, "imported")
    return summary


def as_markdown(summary: PullRunSummary) -> str:
    """Summary of a run for people, with a table of what is no case and why."""
    good = sum(outcome.good for outcome in summary.outcomes)
    sentence = (
        f"**{good}** series are cases, **{summary.skipped}** of them since before, "
        f"**{len(summary.failures)}** are not, in {summary.seconds:.1f} s."
    )
    return "\n".join([sentence, *summary.failures_as_markdown(ROWS_IN_ARTIFACT)])
