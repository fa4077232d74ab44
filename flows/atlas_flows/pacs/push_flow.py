"""Flow `push`: labels back to the studies that their cases came from, as DICOM SEG.

Started from the form in the Prefect UI; `atlasloop pacs push` does the same without Prefect.
"""

# No `from __future__ import annotations` here: Prefect resolves the flow's annotations outside of
# this module.

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from atlas_flows.pacs.pacs_site import PacsSite, PushSummary, push_cases
from atlas_flows.runs import CaseIds, CasesFailed, Outcome
from atlas_flows.runs.progress_artifact import ProgressArtifact
from atlas_flows.settings import Places

ROWS_IN_ARTIFACT = 100


@flow(
    name="push",
    description="Labels back to the PACS: of each organ the original label, else the revised, else "
    "the pseudo label, as one DICOM SEG in the study that the case came from. Labels that are "
    "there are not sent again.",
    persist_result=False,
)
def push(cases: CaseIds | None = None, again: bool = False) -> PushSummary:
    """Push the labels of cases that came from the PACS.

    Args:
        cases: Only these case ids. Empty: all that came from the PACS.
        again: Send also what is on record as sent.

    Raises:
        CasesFailed: the labels of some cases are not there; it names them. All others are.
    """
    with (
        PacsSite.open(Places.read()) as site,
        ProgressArtifact(1, "push-progress", "Cases pushed") as shown,
    ):
        summary = push_cases(site, cases or (), again=again, on_outcome=shown)
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
