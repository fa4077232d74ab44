"""The `organs` group of commands: which organs the atlas has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from atlas_flows.commands.terminal import console, places, print_table, write_text

if TYPE_CHECKING:
    from atlas_core.organs import Organ

app = typer.Typer(
    help="Organs of the atlas: show them, add some, list the schemes that ship with us.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@app.command("list")
def list_schemes() -> None:
    """List the schemes that ship with us, by which a new atlas can begin (`--organs`).

    Example: atlasloop organs list
    """
    from atlas_core.organs import read_scheme, shipped_schemes

    schemes = [read_scheme(name) for name in shipped_schemes()]
    rows = [{"scheme": s.name, "organs": str(len(s)), "names": ", ".join(s.names)} for s in schemes]
    print_table(f"{len(rows)} schemes", rows, numbers=("organs",))


@app.command()
def show(
    context: typer.Context,
    scheme: Annotated[
        str | None, typer.Argument(help="A shipped scheme or a YAML file; default: the atlas's.")
    ] = None,
    as_yaml: Annotated[
        bool, typer.Option("--yaml", help="As a file that can be edited and given to --organs.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="In one line, as the services' settings take it.")
    ] = False,
) -> None:
    """Show the organs of the atlas, or those of a scheme, which is checked.

    Example: atlasloop organs show --yaml > organs.yaml
    """
    from atlas_core.catalog import Catalog
    from atlas_core.organs import read_scheme

    here = places(context)
    if scheme is None:
        here.embedded.make_home()
        with Catalog.open(here.catalog_url) as catalog:
            shown = catalog.organ_scheme()
    else:
        shown = read_scheme(scheme)
    if as_yaml:
        write_text(None, shown.as_yaml())
    elif as_json:
        write_text(None, shown.model_dump_json(exclude_defaults=True))
    else:
        print_table(str(shown), [_row(organ) for organ in shown], numbers=("id", "typical (ml)"))


@app.command()
def extend(
    context: typer.Context,
    scheme: Annotated[
        str,
        typer.Argument(help="A shipped scheme or a YAML file: all organs of the atlas, and more."),
    ],
) -> None:
    """Add organs to the atlas; those that it has keep their names and ids.

    Cases that are there already count as unlabelled for what is new; importing them again takes
    labels that were left out before. Services work with the new organs once they are started anew
    (`atlasloop up`).

    Example: atlasloop organs extend abdomen_atlas_1_1
    """
    from atlas_core.catalog import Catalog, extend_organs
    from atlas_core.organs import read_scheme

    wanted, here = read_scheme(scheme), places(context)
    here.embedded.make_home()
    with Catalog.open(here.catalog_url) as catalog:
        new = extend_organs(catalog, wanted)
    console().print(
        f"organs: {wanted}; new: {', '.join(new) or 'none'}", markup=False, soft_wrap=True
    )
    if new:
        console().print("Start the services anew, so that they know them: `atlasloop up`.")


def _row(organ: Organ) -> dict[str, str]:
    volume = "–" if organ.volume_ml is None else "–".join(f"{ml:g}" for ml in organ.volume_ml)
    return {
        "id": str(organ.label),
        "organ": organ.name,
        "colour": organ.colour,
        "group": organ.group,
        "partner": organ.partner or "–",
        "typical (ml)": volume,
        "also called": ", ".join(organ.aliases),
    }
