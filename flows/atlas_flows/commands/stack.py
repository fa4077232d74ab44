"""`up`, `down`, `status` and `logs`: the stack of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from atlas_flows.commands.options import JsonOption, OrgansOption
from atlas_flows.commands.terminal import console, places, print_table, write_text

if TYPE_CHECKING:
    from atlas_embedded.stack import ComponentStatus

PartName = Literal["triton", "attention", "review", "prefect", "flows"]
"""As in `atlas_embedded.settings`, repeated so that `--help` need not load it (a test compares)."""


def up(context: typer.Context, organs: OrgansOption = None) -> None:
    """Start the stack: Triton, attention and review service, Prefect server and its flows.

    Starts what does not run, mends what is not healthy, and returns when every part has proved that
    it works. Everything listens on 127.0.0.1 only; `--port-base` moves all ports.

    Example: atlasloop up
    """
    from atlas_core.catalog import Catalog
    from atlas_embedded import stack
    from atlas_embedded.components import first_account
    from atlas_embedded.triton_models import repository_of

    from atlas_flows.models import reconcile_at_start, register_installed

    here = places(context)
    here.embedded.make_home()
    with Catalog.open(here.catalog_url) as catalog:
        here.choose_organs(catalog, organs)
    parts = stack.up(here.embedded, on_event=_print_event)
    with Catalog.open(here.catalog_url) as catalog:
        register_installed(repository_of(here.embedded), here.embedded.models_dir, catalog)
    if "triton" in here.embedded.components:
        reconcile_at_start(here)
    _show(parts)
    if "prefect" in here.embedded.components:
        console().print(
            f"Prefect UI: {here.embedded.prefect_url}; sign in with what stands in "
            f"{here.embedded.prefect_auth_file}",
            soft_wrap=True,
        )
    if "review" in here.embedded.components:
        account = first_account(here.embedded)
        how = "" if account is None else f"; sign in as {account[0]} with what is in {account[1]}"
        console().print(f"Review: {here.embedded.review_url}{how}", soft_wrap=True, markup=False)


def down(context: typer.Context) -> None:
    """Stop the stack; data stay. Harmless when nothing runs.

    Example: atlasloop down
    """
    from atlas_embedded import stack

    stopped = stack.down(places(context).embedded, on_event=_print_event)
    if not stopped:
        console().print("nothing was running")


def status(
    context: typer.Context,
    as_json: JsonOption = False,
) -> None:
    """Show how every part of the stack is. Exit status 1 unless all are healthy.

    Health of the model server is proved by a real inference.

    Example: atlasloop status --json
    """
    from atlas_embedded import stack

    parts = stack.status(places(context).embedded)
    healthy = all(part.state == "healthy" for part in parts)
    if as_json:
        import json

        parts_json = [part.model_dump(mode="json") for part in parts]
        write_text(None, json.dumps({"healthy": healthy, "parts": parts_json}, indent=2))
    else:
        _show(parts)
    if not healthy:
        raise typer.Exit(1)


def logs(
    context: typer.Context,
    part: Annotated[PartName, typer.Argument(help="Which part.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Last lines to show.")] = 50,
) -> None:
    """Show the log of one part of the stack.

    Example: atlasloop logs attention --follow
    """
    from atlas_embedded import stack

    for line in stack.logs(places(context).embedded, part, follow=follow, lines=lines):
        write_text(None, line)


def _print_event(line: str) -> None:
    console(stderr=True).print(line, style="dim", markup=False)


def _show(parts: tuple[ComponentStatus, ...]) -> None:
    print_table(
        "Stack",
        [
            {
                "part": part.name,
                "state": part.state,
                "address": part.address,
                "pid": str(part.pid or "–"),
                "memory (MiB)": f"{part.rss_bytes / 2**20:.0f}" if part.rss_bytes else "–",
                "up (s)": f"{part.uptime_s:.0f}" if part.uptime_s is not None else "–",
                "detail": part.detail,
            }
            for part in parts
        ],
        numbers=("pid", "memory (MiB)", "up (s)"),
    )
