"""`models list` and `models show`: which versions there are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from atlas_flows.commands.models.app import (
    ReferenceArgument,
    app,
    open_catalog,
    percent,
    promotion_line,
    register_served,
    registered,
)
from atlas_flows.commands.options import JsonOption
from atlas_flows.commands.terminal import console, places, print_table, write_text

if TYPE_CHECKING:
    from atlas_core.catalog import Catalog
    from atlas_core.model_spec import ModelSpec
    from atlas_core.records import Model

    from atlas_flows.settings import Places


@app.command("list")
def list_models(context: typer.Context, as_json: JsonOption = False) -> None:
    """List every version that the catalog knows, and which one is in service.

    Example: atlasloop models list --json
    """
    here = places(context)
    with open_catalog(here) as catalog:
        register_served(here, catalog)
        rows = [_row(here, catalog, model) for model in catalog.models()]
    if as_json:
        write_text(None, json.dumps(rows, indent=2))
    elif not rows:
        console().print("No model is known yet; run `atlasloop up`, or import one.")
    else:
        print_table(
            f"{len(rows)} versions",
            [
                {
                    "model": f"{row['name']}@{row['version']}",
                    "state": row["state"],
                    "architecture": row["architecture"],
                    "organs": str(len(row["organs"])),
                    "mean Dice": percent(row["mean_dice"]),
                    "parent": row["parent"] or "–",
                    "registered": row["created_at"][:16].replace("T", " "),
                }
                for row in rows
            ],
            numbers=("organs", "mean Dice"),
        )


@app.command()
def show(context: typer.Context, reference: ReferenceArgument, as_json: JsonOption = False) -> None:
    """Show all that is known of one version: spec, parent, data, figures, times in service.

    Example: atlasloop models show unet@1
    """
    from atlas_core.catalog import promotions, training_labels

    here = places(context)
    with open_catalog(here) as catalog:
        register_served(here, catalog)
        model = registered(catalog, reference)
        ref = model.spec.ref
        document = _row(here, catalog, model) | {
            "spec": model.spec.model_dump(mode="json"),
            "provenance": model.provenance,
            "metrics": model.metrics,
            "learnt_from": [
                label.model_dump(mode="json") for label in training_labels(catalog, ref)
            ],
            "promotions": [
                promotion.model_dump(mode="json")
                for promotion in promotions(catalog, ref.name)
                if promotion.model == ref
            ],
        }
    if as_json:
        write_text(None, json.dumps(document, indent=2))
        return
    spec = model.spec
    lines = {
        "model": f"{spec.name}@{spec.version} ({spec.architecture}), {document['state']}",
        "graph": f"sha256 {spec.sha256}",
        "organs": ", ".join(spec.organs),
        "grid": f"{_times(spec.spacing_mm)} mm, windows of {_times(spec.patch)} voxels",
        "intensities": f"{spec.hu_window[0]:g} to {spec.hu_window[1]:g} HU, {spec.activation}",
        "parent": document["parent"] or "–",
        "learnt from": f"{len(document['learnt_from'])} labels",
        "mean Dice": percent(document["mean_dice"]),
        **{f"  {key}": value[:200] for key, value in model.provenance.items()},
    }
    for name, value in lines.items():
        console().print(f"{name:>14}  {value}", markup=False, soft_wrap=True)
    for promotion in document["promotions"]:
        console().print(promotion_line(promotion), markup=False, soft_wrap=True)


def _row(here: Places, catalog: Catalog, model: Model) -> dict[str, Any]:
    from atlas_core.catalog import evaluations
    from atlas_models.evaluation import summarise

    spec = model.spec
    measured = evaluations(catalog, spec.ref)
    return {
        "name": spec.name,
        "version": spec.version,
        "sha256": spec.sha256,
        "state": _state(here, spec),
        "architecture": spec.architecture,
        "organs": list(spec.organs),
        "parent": None if model.parent is None else f"{model.parent.name}@{model.parent.version}",
        "mean_dice": summarise(measured[0].cases).mean_dice if measured else None,
        "created_at": model.created_at.isoformat(),
    }


def _state(here: Places, spec: ModelSpec) -> str:
    from atlas_flows.models import model_repository

    repository = model_repository(here)
    if spec in repository.served(spec.name):
        in_service = repository.in_service(spec.name) == spec.version
        return "in service" if in_service else "loaded"
    return "installed" if spec in repository.installed(spec.name) else "stored"


def _times(values: Sequence[float]) -> str:
    return " × ".join(f"{value:g}" for value in values)
