"""Flow `push`: labels, attention and volumes back to the studies that their cases came from.

Started from the form in the Prefect UI; `atlasloop pacs push` does the same without Prefect.
"""

# No `from __future__ import annotations` here: Prefect resolves the flow's annotations outside of
# this module.

from typing import Annotated

from atlas_core.dicom_export import ExportedLabels, ObjectKind
from atlas_core.records import Reading
from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import Field

from atlas_flows.pacs.pacs_site import PacsSite, PushSummary, push_cases
from atlas_flows.runs import CaseIds, CasesFailed, Outcome
from atlas_flows.runs.progress_artifact import ProgressArtifact
from atlas_flows.settings import Places

ROWS_IN_ARTIFACT = 100

Kinds = Annotated[list[ObjectKind], Field(max_length=len(ObjectKind))]


@flow(
    name="push",
    description="Labels back to the PACS: of each organ the original label, else the revised, else "
    "the pseudo label, as one DICOM SEG in the study that the case came from; on request also "
    "RTSTRUCT, attention and a report of volumes. What is there is not sent again.",
    persist_result=False,
)
def push(
    cases: CaseIds | None = None,
    kinds: Kinds | None = None,
    label: ExportedLabels = ExportedLabels.PREFERRED,
    reading: Reading = Reading.PAPER,
    again: bool = False,
) -> PushSummary:
    """Push what the atlas knows of cases that came from the PACS.

    Args:
        cases: Only these case ids. Empty: all that came from the PACS.
        kinds: seg: segmentation. rtstruct: contours. map: attention of each organ. report: organ
            volumes, with the segmentation. Empty: seg.
        label: Which labels. preferred: of each organ the original, else the revised, else the
            pseudo label.
        reading: Attention of the scores under this reading.
        again: Send also what is on record as sent.

    Raises:
        CasesFailed: the labels of some cases are not there; it names them. All others are.
    """
    with (
        PacsSite.open(Places.read()) as site,
        ProgressArtifact(1, "push-progress", "Cases pushed") as shown,
    ):
        summary = push_cases(
            site,
            cases or (),
            kinds=kinds or (ObjectKind.SEG,),
            label=label,
            reading=reading,
            again=again,
            on_outcome=shown,
        )
    create_markdown_artifact(as_markdown(summary), key="push-summary", description="What went")
    if summary.failures:
        raise CasesFailed(summary, "pushed")
    return summary


def as_markdown(summary: PushSummary) -> str:
    """Summary of a run for people, with a table of what failed and why."""
    sentence = (
        f"**{summary.count(Outcome.PUSHED)}** cases pushed, **{summary.skipped}** were there, "
        f"**{len(summary.failures)}** not pushed, in {summary.seconds:.1f} s."
    )
    return "\n".join([sentence, *summary.failures_as_markdown(ROWS_IN_ARTIFACT)])
