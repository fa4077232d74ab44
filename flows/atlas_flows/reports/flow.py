"""Flow `report`: the HTML page of the list or of the evaluation, in the landing folder."""

# No `from __future__ import annotations` here: Prefect resolves the flow's annotations outside of
# this module.

from typing import Annotated

from atlas_core.records import DatasetName, RankBy, Reading
from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from pydantic import Field

from atlas_flows.reports import PageRequest, write_page
from atlas_flows.runs import FilePath, landing_path
from atlas_flows.settings import Places


@flow(
    name="report",
    description="One self-contained HTML page in the landing folder: the priority list with "
    "pictures of its top cases, or the paper's tables and figures.",
    persist_result=False,
)
def report(
    output: FilePath = "report.html",
    dataset: DatasetName | None = None,
    reading: Reading = Reading.PAPER,
    by: RankBy = RankBy.DISAGREEMENT,
    top: Annotated[int, Field(ge=0, le=100)] = 5,
    evaluation: bool = False,
    truth: FilePath | None = None,
    original_truth: bool = False,
    nsd: bool = True,
) -> str:
    """Write the page; its path.

    Args:
        output: File below the landing folder; an existing one is replaced.
        dataset: Only the cases of this dataset. Empty: of all.
        reading: paper: Eq. 1–4 to the letter. released: as in the paper's published code.
        by: What the list is sorted by: disagreement, size, attended or relative.
        top: Cases with pictures.
        evaluation: The paper's tables and figures instead of the list.
        truth: Folder with true masks below the landing folder, for an evaluation.
        original_truth: In an evaluation the original labels are the truth.
        nsd: Surface Dice too, in an evaluation.

    Raises:
        InvalidInput: a combination that means nothing, or a path out of the landing folder.
        NotFound: no such dataset.
    """
    places = Places.read()
    request = PageRequest(
        reading,
        by,
        dataset,
        top,
        evaluation=evaluation,
        truth=None if truth is None else landing_path(truth, places),
        original_truth=original_truth,
        nsd=nsd,
    )
    log = get_run_logger()
    page = landing_path(output, places)
    write_page(places, request, page, on_case=lambda done: log.info("%d cases evaluated", done))
    create_markdown_artifact(
        f"`{output}` in the landing folder ({page.stat().st_size / 1e6:.1f} MB)",
        key="report",
        description="The page that was written",
    )
    return output
