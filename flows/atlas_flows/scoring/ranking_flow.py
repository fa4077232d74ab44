"""Flow `ranking`: the priority list in the Prefect UI, and as a CSV file in the landing folder."""

# No `from __future__ import annotations` here: Prefect resolves the flow's annotations outside of
# this module.

from typing import Annotated

from atlas_core.catalog import Catalog
from atlas_core.ensembles import EnsembleName
from atlas_core.records import DatasetName, RankBy, Reading
from prefect import flow
from prefect.artifacts import create_table_artifact
from pydantic import Field

from atlas_flows.runs import FilePath, landing_path, write_file
from atlas_flows.scoring import priority_list
from atlas_flows.settings import Places

ROWS_SHOWN = 500
"""Rows of the artifact; the CSV file has all."""


@flow(
    name="ranking",
    description="The priority list: which cases need an annotator most, as `atlasloop ranking` "
    "shows it. Organs with an original label do not count.",
    persist_result=False,
)
def ranking(
    dataset: DatasetName | None = None,
    reading: Reading = Reading.PAPER,
    by: RankBy = RankBy.DISAGREEMENT,
    ensemble: EnsembleName | None = None,
    top: Annotated[int, Field(ge=1)] | None = None,
    share: Annotated[float, Field(gt=0, le=1)] | None = None,
    csv: FilePath | None = None,
) -> int:
    """Show the list; how many cases of it.

    Args:
        dataset: Only the cases of this dataset. Empty: of all.
        reading: paper: Eq. 1–4 to the letter. released: as in the paper's published code.
        by: What the list is sorted by. disagreement: how much the models' masks differ. size:
            attention size, the paper's. attended: volume of attention of at least 0.2. relative:
            attention against the organ's own volume.
        ensemble: The list of this ensemble. Empty: of the one in use.
        top: Only the first so many cases. Empty: all.
        share: Only this part of the list; 0.05 is the paper's. Empty: all.
        csv: Also write the list to this file below the landing folder, as revise-next.csv.

    Raises:
        NotFound: no such dataset or ensemble.
        Conflict: some scores lack what the list is sorted by.
        InvalidInput: top and share, or a path that leads out of the landing folder.
    """
    places = Places.read()
    request = priority_list.ListRequest(reading, by, dataset, ensemble, top, share)
    with Catalog.open(places.catalog_url) as catalog:
        found = priority_list.read_list(catalog, request)
    if csv is not None:
        write_file(landing_path(csv, places), priority_list.as_csv(found.cases, found.organs))
    about = f"{len(found.cases)} of {found.total} cases by {by.value}"
    create_table_artifact(
        priority_list.as_rows(found.cases[:ROWS_SHOWN], by),
        key="priority-list",
        description=f"{about}. {found.note}" if found.note else about,
    )
    return len(found.cases)
