"""`models evaluate` and `models compare`: how good versions are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atlas_flows.commands.models.app import (
    LimitOption,
    ReferenceArgument,
    app,
    counting,
    open_catalog,
    parse_reference,
    registered,
)
from atlas_flows.commands.options import DatasetOption, JsonOption
from atlas_flows.commands.terminal import places, print_table, write_text

if TYPE_CHECKING:
    from atlas_core.model_spec import ModelSpec

    from atlas_flows.settings import Places


@app.command()
def evaluate(
    context: typer.Context,
    references: Annotated[
        list[str], typer.Argument(help="Versions that the server has loaded: NAME or NAME@T.")
    ],
    dataset: DatasetOption = None,
    limit: LimitOption = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", dir_okay=False, help="Every case and organ.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure versions against original and revised labels: Dice and surface Dice (1 mm) by organ.

    Every version is run by the attention service as it is served. Cases that one of them was
    trained on do not count. Two versions are compared by Wilcoxon's signed-rank test.

    Example: atlasloop models evaluate unet@0 unet@1 --dataset BTCV --csv figures.csv
    """
    from atlas_core.catalog import record_evaluation
    from atlas_core.store import CaseStore
    from atlas_embedded.model_trials import in_use
    from atlas_models.evaluation import as_csv
    from atlasloop.client import AttentionClient

    from atlas_flows.models import model_repository, version_evaluation

    here = places(context)
    specs = [_loaded(here, reference) for reference in references]
    with (
        in_use(model_repository(here), specs),
        open_catalog(here) as catalog,
        AttentionClient(here.attention_address) as client,
    ):
        organs = [organ for organ in specs[0].organs if all(organ in s.organs for s in specs)]
        refs = [spec.ref for spec in specs]
        cases = version_evaluation.evaluation_cases(
            catalog, organs, dataset=dataset, without=refs, limit=limit
        )
        results = {}
        with counting("evaluating", len(cases) * len(specs)) as step:
            for spec in specs:
                measured = version_evaluation.evaluate(
                    spec,
                    cases,
                    client,
                    CaseStore(here.store),
                    scheme=catalog.organ_scheme(),
                    on_case=lambda *_: step(),
                )
                record_evaluation(catalog, measured)
                results[f"{spec.name}@{spec.version}"] = measured.cases
    if csv is not None:
        write_text(csv, as_csv(results))
    _show_evaluations(results, as_json)


@app.command()
def compare(
    context: typer.Context,
    first: ReferenceArgument,
    second: Annotated[str, typer.Argument(help="The other version.")],
    as_json: JsonOption = False,
) -> None:
    """Compare two versions by what `evaluate` or `promote` recorded; nothing is predicted.

    Wilcoxon's signed-rank test on the cases of both: * p < 0.05, ** p < 0.01, *** p < 0.001.

    Example: atlasloop models compare unet@0 unet@1
    """
    from atlas_core.catalog import evaluations

    from atlas_flows.models.version_evaluation import on_the_same_truth

    with open_catalog(places(context)) as catalog:
        models = [registered(catalog, reference).spec.ref for reference in (first, second)]
        known = on_the_same_truth({ref: evaluations(catalog, ref) for ref in models})
    results = {f"{e.model.name}@{e.model.version}": e.cases for e in known}
    _show_evaluations(results, as_json)


def _loaded(here: Places, reference: str) -> ModelSpec:
    """A version that the server has loaded; NAME without a version: the one in service.

    Raises:
        NotFound: it is not loaded.
    """
    from atlas_core.errors import NotFound

    from atlas_flows.models import model_repository

    name, version = parse_reference(reference)
    repository = model_repository(here)
    wanted = repository.in_service(name) if version is None else version
    for spec in repository.served(name):
        if spec.version == wanted:
            return spec
    raise NotFound(
        f"model {reference} is not loaded",
        expected=", ".join(f"{s.name}@{s.version}" for s in repository.served(name)) or "a model",
        remedy="promote it; the version before stays loaded beside it",
    )


def _show_evaluations(results: Mapping[str, Sequence[Any]], as_json: bool) -> None:
    from atlas_models.evaluation import FIGURES, compare, summarise
    from atlas_models.evaluation import as_json as summary_json

    summaries = {model: summarise(cases) for model, cases in results.items()}
    names = list(results)
    differences = compare(results[names[0]], results[names[1]]) if len(names) == 2 else {}
    if as_json:
        document = {
            "models": {model: summary_json(summary) for model, summary in summaries.items()},
            "comparison": {
                figure: {
                    organ: {
                        "pairs": one.pairs,
                        "difference": one.difference,
                        "p_value": one.p_value,
                        "mark": one.mark,
                    }
                    for organ, one in by_organ.items()
                }
                for figure, by_organ in differences.items()
            },
        }
        write_text(None, json.dumps(document, indent=2))
        return
    heads = {"dice": "Dice", "nsd": "NSD 1 mm"}
    rows = []
    organs = list(dict.fromkeys(organ for s in summaries.values() for organ in s.organs))
    for organ in (*organs, "mean"):
        row = {"organ": organ}
        for figure in FIGURES:
            for model, summary in summaries.items():
                spreads = summary.overall if organ == "mean" else summary.organs.get(organ)
                row[f"{model} {heads[figure]} (%)"] = str(spreads[figure]) if spreads else "–"
            if differences:
                one = differences[figure].get(organ)
                row[f"p {heads[figure]}"] = _significance(one)
        rows.append(row)
    count = next(iter(summaries.values())).cases
    print_table(f"{count} cases, mean ± standard deviation", rows, numbers=list(rows[0])[1:])


def _significance(one: Any) -> str:
    if one is None or one.p_value is None:
        return "–"
    return f"{one.p_value:.2g} {one.mark}"
