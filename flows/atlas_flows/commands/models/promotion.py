"""`models promote` and `models rollback`: which version serves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from atlas_flows.commands.models.app import (
    LimitOption,
    ReferenceArgument,
    WhyOption,
    app,
    open_catalog,
    parse_reference,
    promotion_line,
    register_served,
    say,
    store_of,
)
from atlas_flows.commands.options import DatasetOption, JsonOption
from atlas_flows.commands.terminal import console, places, write_text

if TYPE_CHECKING:
    from atlas_core.catalog import Promotion


@app.command()
def promote(
    context: typer.Context,
    reference: ReferenceArgument,
    force: Annotated[
        bool,
        typer.Option("--force", help="Also one that is worse, or judged by few; goes on record."),
    ] = False,
    why: WhyOption = "",
    margin: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="By how much mean Dice may fall; default: the setting, 0.01."
        ),
    ] = None,
    dataset: DatasetOption = None,
    limit: LimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a version into service, after it has proved itself beside the current one.

    It is loaded under its own number, must answer real windows, and is evaluated on the cases with
    original or revised labels that it was not trained on. A model without a version in service
    joins the ensemble in use. The running service switches without losing a request. Whatever
    fails, the version in service stays.

    Example: atlasloop models promote unet@1 --why "fine-tuned on 40 revisions"
    """
    from atlas_flows.models import Site, promotion

    here = places(context)
    name, version = parse_reference(reference)
    request = promotion.PromotionRequest(force=force, why=why, dataset=dataset, limit=limit)
    with open_catalog(here) as catalog:
        _, exported = store_of(here).find(name, version)
        site = Site.of(here, catalog, margin)
        done = promotion.promote(exported, site, request, say)
        register_served(here, catalog)
    _show_promotion(done, as_json)


@app.command()
def rollback(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Of the model.")],
    to: Annotated[
        int | None, typer.Option(min=0, help="t of a version; default: the one before.")
    ] = None,
    why: WhyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Put the version back that served before; seconds, as it is still loaded. With its first
    version a model leaves the ensembles, and is unloaded.

    Example: atlasloop models rollback unet --why "misses the gallbladder"
    """
    from atlas_flows.models import Site, promotion

    here = places(context)
    with open_catalog(here) as catalog:
        site = Site.of(here, catalog)
        done = promotion.rollback(name, site, to=to, why=why, on_event=say)
    _show_promotion(done, as_json)


@app.command()
def retire(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Of the model.")],
    why: WhyOption = "",
) -> None:
    """Take a model out of every ensemble and unload it. Its versions stay in the store of models,
    its results in the atlas.

    Example: atlasloop models retire unet --why "replaced by nnunet"
    """
    from atlas_embedded.model_trials import exclusive_change

    from atlas_flows.models import Site, ensembles

    here = places(context)
    with open_catalog(here) as catalog:
        register_served(here, catalog)
        site = Site.of(here, catalog)
        with exclusive_change(site.repository):
            ensembles.tidy(site, say)
            ensembles.without(name, site, say, why)


def _show_promotion(promotion: Promotion, as_json: bool) -> None:
    if as_json:
        write_text(None, promotion.model_dump_json(indent=2))
    else:
        line = promotion_line(promotion.model_dump(mode="json"))
        console().print(line, markup=False, soft_wrap=True)
