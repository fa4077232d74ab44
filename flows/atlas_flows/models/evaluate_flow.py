"""Flow `evaluate`: versions of models against original and revised labels."""

# No `from __future__ import annotations` here: Prefect resolves the flow's annotations outside of
# this module.

from typing import Annotated

from atlas_core.catalog import Catalog, record_evaluation
from atlas_core.errors import NotFound
from atlas_core.records import DatasetName
from atlas_core.store import CaseStore
from atlas_embedded.model_trials import in_use
from atlas_models.evaluation import summarise
from atlasloop.client import AttentionClient
from prefect import flow, get_run_logger, runtime
from prefect.artifacts import create_table_artifact
from pydantic import Field

from atlas_flows.models import version_evaluation
from atlas_flows.models.server import model_repository
from atlas_flows.runs import ModelNames
from atlas_flows.settings import Places


def _run_name() -> str:
    return str(runtime.flow_run.parameters.get("dataset") or "all datasets")


@flow(
    name="evaluate",
    description="Every version that is loaded, of the models asked for, predicts cases with "
    "original or revised labels that none of them has learnt from. The figures go on record.",
    flow_run_name=_run_name,
    persist_result=False,
)
def evaluate(
    models: ModelNames | None = None,
    dataset: DatasetName | None = None,
    limit: Annotated[int, Field(ge=1)] | None = None,
) -> dict[str, float]:
    """Mean Dice of each version, by NAME@T.

    Args:
        models: Names of models in service. Empty: all.
        dataset: On cases of this dataset. Empty: of all.
        limit: On the first so many cases. Empty: on all.

    Raises:
        NotFound: no model, or no case to evaluate on.
    """
    places = Places.read()
    repository = model_repository(places)
    names = models or list(repository.models())
    specs = [spec for name in names for spec in repository.served(name)]
    if not specs:
        raise NotFound("no model is in service", remedy="install one: `atlasloop up`")
    organs = [organ for organ in specs[0].organs if all(organ in s.organs for s in specs)]
    means = {}
    with (
        in_use(repository, specs),
        Catalog.open(places.catalog_url) as catalog,
        AttentionClient(places.attention_address) as client,
    ):
        cases = version_evaluation.evaluation_cases(
            catalog, organs, dataset=dataset, without=[spec.ref for spec in specs], limit=limit
        )
        for spec in specs:
            found = version_evaluation.evaluate(
                spec, cases, client, CaseStore(places.store), scheme=catalog.organ_scheme()
            )
            record_evaluation(catalog, found)
            version = f"{spec.name}@{spec.version}"
            means[version] = summarise(found.cases).mean_dice
            get_run_logger().info("%s: mean Dice %.3f", version, means[version])
    rows = [{"version": name, "mean Dice (%)": f"{100 * dice:.1f}"} for name, dice in means.items()]
    create_table_artifact(rows, key="evaluation", description=f"{len(cases)} cases")
    return means
