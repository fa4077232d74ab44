"""The group `ensemble`: which models work together, and which of that is in use."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atlas_flows.commands.models.app import (
    WhyOption,
    open_catalog,
    parse_reference,
    register_served,
    say,
)
from atlas_flows.commands.options import JsonOption
from atlas_flows.commands.terminal import console, places, print_table, write_text

if TYPE_CHECKING:
    from atlas_core.ensembles import EnsembleChange, MemberRole
    from atlas_core.model_spec import ModelSpec

    from atlas_flows.models import Site

app = typer.Typer(
    help="Ensembles: which models work together, and which of them is in use.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

NameArgument = Annotated[str, typer.Argument(help="Of the ensemble.", metavar="ENSEMBLE")]
LocatorOption = Annotated[
    str | None, typer.Option(help="Model that only finds where organs can be: NAME or NAME@T.")
]


@app.command()
def create(
    context: typer.Context,
    name: NameArgument,
    models: Annotated[list[str], typer.Argument(help="NAME or NAME@T of its models.")],
    locator: LocatorOption = None,
    grid: Annotated[
        tuple[float, float, float] | None,
        typer.Option(help="Spacing of the fusion grid along x, y, z in mm; default: the finest."),
    ] = None,
    why: WhyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Put an ensemble on record. Nothing is loaded: see `use`.

    A model without a version is meant in the one that is in service, else in its newest.

    Example: atlasloop ensemble create trial unet nnunet@1 --grid 1.5 1.5 1.5 --why "finer"
    """
    from atlas_core.catalog import current_ensembles
    from atlas_core.ensembles import EnsembleState
    from atlas_core.errors import Conflict

    from atlas_flows.models import ensembles

    with _site(context) as site:
        if name in [known.ensemble.name for known in current_ensembles(site.catalog)]:
            raise Conflict(
                f"there is an ensemble {name} already",
                remedy=f"change it: `atlasloop ensemble add {name} MODEL`, or remove it first",
            )
        chosen = [*_voices(models, site), *_locator(locator, site)]
        made = ensembles.ensemble_of(name, chosen, grid)
        order = ensembles.EnsembleOrder(made, EnsembleState.IDLE, "created", why)
        ensembles.change(order, site, say)
        _show(name, site, as_json)


@app.command()
def add(
    context: typer.Context,
    name: NameArgument,
    models: Annotated[
        list[str] | None, typer.Argument(help="NAME or NAME@T of the models that join.")
    ] = None,
    locator: LocatorOption = None,
    why: WhyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Have models join an ensemble. If it is in use or loaded, they are loaded and must answer
    first; calls that run meanwhile go on without them.

    Example: atlasloop ensemble add default swin --why "third voice"
    """
    from atlas_core.catalog import find_ensemble
    from atlas_core.errors import InvalidInput

    from atlas_flows.models import ensembles

    if not models and locator is None:
        raise InvalidInput("say which models join", expected="MODEL… or --locator MODEL")
    with _site(context) as site:
        known = find_ensemble(site.catalog, name)
        new = [*_voices(models or (), site), *_locator(locator, site)]
        grown = ensembles.with_members(known.ensemble, new, site)
        action = f"added {', '.join(spec.name for spec, _ in new)}"
        ensembles.change(ensembles.EnsembleOrder(grown, known.state, action, why), site, say)
        _show(name, site, as_json)


@app.command()
def remove(
    context: typer.Context,
    name: NameArgument,
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Names of the models that leave; none: the ensemble itself goes."),
    ] = None,
    why: WhyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Take models out of an ensemble, or remove it; what no ensemble needs is unloaded. Results
    made before stay, under the ensemble that made them.

    Example: atlasloop ensemble remove default unet --why "misses the pancreas"
    """
    from atlas_core.catalog import find_ensemble
    from atlas_core.ensembles import EnsembleState
    from atlas_core.errors import Conflict

    from atlas_flows.models import ensembles

    with _site(context) as site:
        known = find_ensemble(site.catalog, name)
        if models:
            smaller = ensembles.removed(known.ensemble, models, site)
            action = f"removed {', '.join(models)}"
            order = ensembles.EnsembleOrder(smaller, known.state, action, why)
        elif known.state is EnsembleState.IN_USE:
            raise Conflict(
                f"ensemble {name} is in use", remedy="first `atlasloop ensemble use` another one"
            )
        else:
            order = ensembles.EnsembleOrder(known.ensemble, EnsembleState.REMOVED, "removed", why)
        ensembles.change(order, site, say)
        if models:
            _show(name, site, as_json)


@app.command()
def use(
    context: typer.Context,
    name: NameArgument,
    beside: Annotated[
        bool,
        typer.Option("--beside", help="Load it beside the one in use, for `score --ensemble`."),
    ] = False,
    unload: Annotated[
        bool, typer.Option("--unload", help="Unload one that was loaded beside.")
    ] = False,
    why: WhyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Put an ensemble to use: it answers whenever none is named. Its models are loaded and must
    answer first; what no ensemble needs afterwards is unloaded.

    Example: atlasloop ensemble use trial --why "better on the pancreas"
    """
    from atlas_core.catalog import find_ensemble
    from atlas_core.ensembles import EnsembleState
    from atlas_core.errors import Conflict

    from atlas_flows.models import ensembles

    state, action = EnsembleState.IN_USE, "used"
    if unload:
        state, action = EnsembleState.IDLE, "unloaded"
    elif beside:
        state, action = EnsembleState.LOADED, "loaded"
    with _site(context) as site:
        known = find_ensemble(site.catalog, name)
        if known.state is EnsembleState.IN_USE and state is not EnsembleState.IN_USE:
            raise Conflict(
                f"ensemble {name} is in use", remedy="first `atlasloop ensemble use` another one"
            )
        ensembles.change(ensembles.EnsembleOrder(known.ensemble, state, action, why), site, say)
        _show(name, site, as_json)


@app.command("list")
def list_ensembles(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the ensembles, and which one is in use.

    Example: atlasloop ensemble list --json
    """
    from atlas_core.catalog import current_ensembles

    here = places(context)
    with open_catalog(here) as catalog:
        register_served(here, catalog)
        known = current_ensembles(catalog)
    if as_json:
        write_text(None, json.dumps([_document(change) for change in known], indent=2))
    elif not known:
        console().print("There is no ensemble yet; run `atlasloop up`, or create one.")
    else:
        print_table("Ensembles", [_row(change) for change in known], numbers=())


@app.command()
def show(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(help="Of the ensemble; default: the one in use.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show members, fusion grid, organs and history of an ensemble.

    Example: atlasloop ensemble show default
    """
    from atlas_core.catalog import ensemble_history, find_ensemble

    here = places(context)
    with open_catalog(here) as catalog:
        register_served(here, catalog)
        change = find_ensemble(catalog, name)
        history = ensemble_history(catalog, change.ensemble.name)
    if as_json:
        entries = [_document(entry) for entry in history]
        write_text(None, json.dumps(_document(change) | {"history": entries}, indent=2))
        return
    for key, value in _row(change).items():
        console().print(f"{key:>12}  {value}", markup=False, soft_wrap=True)
    for entry in history:
        when = f"{entry.created_at:%Y-%m-%d %H:%M}"
        members = ", ".join(f"{m.model.name}@{m.model.version}" for m in entry.ensemble.members)
        line = f"{when} {entry.action} by {entry.who}: {members}"
        line += f"; {entry.why}" if entry.why else ""
        console().print(line, markup=False, soft_wrap=True)


@contextmanager
def _site(context: typer.Context) -> Iterator[Site]:
    from atlas_flows.models import Site

    here = places(context)
    with open_catalog(here) as catalog:
        register_served(here, catalog)
        yield Site.of(here, catalog)


def _voices(references: Sequence[str], site: Site) -> list[tuple[ModelSpec, MemberRole]]:
    from atlas_core.ensembles import MemberRole

    return [(_member(reference, site), MemberRole.VOICE) for reference in references]


def _locator(reference: str | None, site: Site) -> list[tuple[ModelSpec, MemberRole]]:
    from atlas_core.ensembles import MemberRole

    return [] if reference is None else [(_member(reference, site), MemberRole.LOCATOR)]


def _member(reference: str, site: Site) -> ModelSpec:
    from atlas_flows.models import ensembles

    spec = ensembles.member_spec(*parse_reference(reference), site)
    ensembles.organs_outside(spec, site, say)
    return spec


def _show(name: str, site: Site, as_json: bool) -> None:
    from atlas_core.catalog import find_ensemble

    change = find_ensemble(site.catalog, name)
    if as_json:
        write_text(None, json.dumps(_document(change), indent=2))
    else:
        print_table("Ensemble", [_row(change)], numbers=())


def _document(change: EnsembleChange) -> dict[str, Any]:
    return change.model_dump(mode="json") | {"key": change.ensemble.key}


def _row(change: EnsembleChange) -> dict[str, str]:
    from atlas_core.ensembles import MemberRole

    ensemble = change.ensemble
    grid = ensemble.fusion_spacing_mm
    return {
        "ensemble": ensemble.name,
        "state": change.state.value.replace("_", " "),
        "members": ", ".join(
            f"{m.model.name}@{m.model.version}"
            + ("" if m.role is MemberRole.VOICE else f" ({m.role.value})")
            for m in ensemble.members
        ),
        "fusion grid": "finest" if grid is None else " × ".join(f"{mm:g}" for mm in grid) + " mm",
        "organs": str(len(ensemble.organs)),
        "since": f"{change.created_at:%Y-%m-%d %H:%M}",
    }
