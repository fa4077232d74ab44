"""Flow `revise`: tasks for annotators at the top of the priority list (step 5).

It ends when the tasks are open; people work in the review service, as long as they need.
"""

# No `from __future__ import annotations` here: Prefect resolves the flow's annotations outside of
# this module.

from typing import Annotated

from atlas_core.catalog import Catalog
from atlas_core.records import DatasetName, RankBy, Reading
from atlas_core.review import TOP_SHARE, Portion
from prefect import flow, get_run_logger, runtime
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from pydantic import Field

from atlas_flows.loop.queue_filling import QueueRequest, open_queue, review_answers
from atlas_flows.loop.state_machine import Queued
from atlas_flows.runs import EnsembleKey, OrganNames
from atlas_flows.runs.events import Event, emit
from atlas_flows.settings import Places


def _run_name() -> str:
    given = runtime.flow_run.parameters
    return f"{given.get('dataset') or 'all datasets'}, {Reading(given['reading']).value}"


@flow(
    name="revise",
    description="Opens a revision task for each case at the top of the priority list. Annotators "
    "find them in the review service; the event atlasloop.queue.drained follows when all are done.",
    flow_run_name=_run_name,
    persist_result=False,
)
def revise(
    dataset: DatasetName | None = None,
    reading: Reading = Reading.PAPER,
    by: RankBy = RankBy.DISAGREEMENT,
    share: Annotated[float, Field(gt=0, le=1)] | None = 0.05,
    minutes: Annotated[float, Field(ge=15)] | None = None,
    organs: OrganNames | None = None,
    again: bool = False,
    ensemble: EnsembleKey | None = None,
    before: Annotated[list[int], Field(max_length=1_000_000)] | None = None,
) -> Queued:
    """Open revision tasks.

    Args:
        dataset: Only cases of this dataset. Empty: of all datasets.
        reading: Which attention sizes make the list. paper: Eq. 1–4 to the letter. released: as in
            the paper's published code.
        by: What the priority list is sorted by. disagreement: how much the models' masks differ.
            size: attention size, the paper's. attended: volume of attention of at least 0.2.
            relative: attention against the organ's own volume.
        share: This part of the list is revised; the paper took 0.05.
        minutes: Instead of a share: as many cases as fit into so many minutes of annotators' time,
            at 15 minutes a case.
        organs: Only these organs count, and only these are looked at. Empty: all.
        again: Also cases that an annotator has seen before. Otherwise they are passed over.
        ensemble: List of this ensemble. Empty: of the one that scored last.
        before: Tasks of earlier iterations; the flow iterate fills this in.

    Raises:
        NotFound: no case is scored.
        Conflict: some scores lack what the list is sorted by.
    """
    places = Places.read()
    portion = Portion(share=share or TOP_SHARE) if minutes is None else Portion(minutes=minutes)
    request = QueueRequest(portion, reading, ensemble, dataset, tuple(organs or ()), again, by)
    with Catalog.open(places.catalog_url) as catalog:
        queued = open_queue(catalog, request, before or ())
    _publish(queued, places)
    return queued


def _publish(queued: Queued, places: Places) -> None:
    link = f"{places.review_url}/#/queue"
    create_link_artifact(link, link_text="Review page", key="review-page", description="The queue")
    text = (
        f"**{len(queued.tasks)}** cases wait for annotators or were judged already, "
        f"**{queued.passed_over}** were seen before and passed over.\n\n[Review page]({link})"
    )
    if not review_answers(places.review_url):
        warning = f"the review service at {places.review_url} does not answer: start it"
        get_run_logger().warning("%s (`atlasloop up`)", warning)
        text += f"\n\n**Warning:** {warning} (`atlasloop up`). The tasks wait there."
    create_markdown_artifact(text, key="revision-queue", description="What annotators look at")
    if queued.tasks:
        emit(
            Event.QUEUE_OPEN,
            subject="queue",
            occasion=str(queued.tasks[-1]),
            tasks=len(queued.tasks),
            page=link,
        )
