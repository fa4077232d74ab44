"""`check`: labels looked at beside their CTs."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import typer

from atlas_flows.commands.cases import counting
from atlas_flows.commands.options import DatasetOption, JsonOption
from atlas_flows.commands.terminal import console, places, print_table, show_error, write_text

WORKERS = 2
"""Cases read at once, as in an import."""


def check(
    context: typer.Context,
    dataset: DatasetOption = None,
    case: Annotated[
        list[str] | None, typer.Option(help="Only this case; may be given several times.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Also labels that were looked at before.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Look at the labels in force, of people and models, beside their CTs.

    Sides, order, volume, density, pieces and overlaps, by the atlas's organs. What is found is a
    warning: a column of `atlasloop ranking` and a filter of the review queue; nothing is refused.
    Labels are looked at once. Exit status 1 if some cases could not be read.

    Example: atlasloop check --dataset BTCV
    """
    from atlas_core.catalog import Catalog
    from atlas_core.errors import AtlasError
    from atlas_core.importing import check_labels
    from atlas_core.records import Case, CaseWarning
    from atlas_core.store import CaseStore

    here = places(context)
    failures: list[str] = []
    with Catalog.open(here.catalog_url) as catalog, counting("checking") as on_progress:
        store = CaseStore(here.store)
        if dataset is not None:
            catalog.dataset(dataset)  # a typing error must not look like an empty dataset
        cases = [catalog.case(name) for name in case] if case else catalog.cases(dataset)

        def checked(one: Case) -> tuple[CaseWarning, ...]:
            try:
                return check_labels(catalog, store, one, again=again)
            except AtlasError as error:
                failures.append(str(error))
                return ()

        found: dict[str, tuple[CaseWarning, ...]] = {}
        with ThreadPoolExecutor(WORKERS, thread_name_prefix="check") as pool:
            for one, warnings in zip(cases, pool.map(checked, cases), strict=True):
                found[one.id] = warnings
                on_progress(len(found), len(cases))
    rows = [(name, warning) for name, warnings in found.items() for warning in warnings]
    if as_json:
        listed = [{"case": name, **warning.model_dump(mode="json")} for name, warning in rows]
        write_text(
            None,
            json.dumps({"cases": len(cases), "warnings": listed, "failures": failures}, indent=2),
        )
    else:
        if rows:
            table = [
                {"case": name, "about": warning.kind.value, "warning": warning.text}
                for name, warning in rows
            ]
            print_table(f"{len(rows)} warnings", table)
        warned = len({name for name, _ in rows})
        console().print(f"{len(cases)} cases looked at, {warned} with warnings")
        for failure in failures:
            show_error(failure)
    if failures:
        raise typer.Exit(1)
