"""`doctor`: is this site in order?"""

from __future__ import annotations

from typing import Annotated

import typer

from atlas_flows.commands.options import JsonOption
from atlas_flows.commands.terminal import console, places, print_table, write_text


def doctor(
    context: typer.Context,
    windows_a_second: Annotated[
        float, typer.Option(min=0, help="What each server is to do, by each model; 0: no matter.")
    ] = 0.0,
    windows_in_flight: Annotated[
        int, typer.Option(min=1, max=256, help="As ATLAS_ATTENTION_WINDOWS_IN_FLIGHT.")
    ] = 5,
    most_step: Annotated[
        int, typer.Option(min=0, max=255, help="How far answers may be from the CPU's, of 255.")
    ] = 26,
    least_dice: Annotated[
        float, typer.Option(min=0, max=1, help="Dice that masks must have with the CPU's.")
    ] = 0.99,
    without_review: Annotated[
        bool, typer.Option("--without-review", help="This site has no review service.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Examine the site: models as they are served, memory, disk, clocks, database, services.

    Reference windows go through every member at every model server, and the answers are held
    against those of a CPU. Exit status 1 if anything is wrong; what is doubtful is no failure.

    Example: atlasloop doctor --json
    """
    from atlas_flows.doctor import Bounds, Diagnosis, diagnose

    bounds = Bounds(
        most_step=most_step,
        least_dice=least_dice,
        windows_a_second=windows_a_second,
        windows_in_flight=windows_in_flight,
        review=not without_review,
    )
    found = list(diagnose(places(context), bounds))
    healthy = all(one.verdict is not Diagnosis.WRONG for one in found)
    if as_json:
        import json

        rows = [one.model_dump(mode="json") for one in found]
        write_text(None, json.dumps({"healthy": healthy, "findings": rows}, indent=2))
    else:
        print_table(
            "Doctor",
            [
                {"check": one.check, "verdict": one.verdict.value, "found": one.found}
                for one in found
            ],
        )
        for one in found:
            if one.remedy:
                console().print(f"{one.check}: {one.remedy}", soft_wrap=True, markup=False)
    if not healthy:
        raise typer.Exit(1)
