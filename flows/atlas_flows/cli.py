"""The `atlasloop` command.

Commands import what they need when they run, so that `--help` answers at once and reading a ranking
does not load a model server's client. Every error that a user can cause is one line on stderr and
exit status 2; `--debug` shows where it came from.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated

import typer

from atlas_flows.commands import (
    assembly,
    backup,
    cases,
    checks,
    dicom,
    doctor,
    ensembles,
    evaluation,
    loop,
    models,
    organs,
    pacs,
    ranking,
    release,
    report,
    scoring,
    stack,
)
from atlas_flows.commands.terminal import Choices, show_error
from atlas_flows.demos import commands as demos

app = typer.Typer(
    name="atlasloop",
    help="From CT volumes to a fully annotated atlas: import, predict, rank, revise.",
    epilog="Start with `atlasloop demo`: everything on phantoms, in under three minutes.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    # Our own one-line errors; a framework's traceback box is no help at a hospital console.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("demo", rich_help_panel="Start here")(demos.demo)
app.command("import", rich_help_panel="Cases")(cases.import_cases)
app.command("check", rich_help_panel="Cases")(checks.check)
app.command("presets", rich_help_panel="Cases")(cases.presets)
app.command("phantoms", rich_help_panel="Cases")(cases.phantoms)
app.command("score", rich_help_panel="Priority list")(scoring.score)
app.command("ranking", rich_help_panel="Priority list")(ranking.ranking)
app.command("report", rich_help_panel="Priority list")(report.report)
app.command("iterate", rich_help_panel="Loop")(loop.iterate)
app.command("iterations", rich_help_panel="Loop")(loop.iterations)
app.command("simulate-annotator", rich_help_panel="Loop")(demos.simulate_annotator)
app.command("loop-demo", rich_help_panel="Start here")(demos.loop_demo)
app.command("assemble", rich_help_panel="Atlas")(assembly.assemble)
app.command("release", rich_help_panel="Atlas")(release.release)
app.command("export-dicom", rich_help_panel="Atlas")(dicom.export_dicom)
app.command("backup", rich_help_panel="Catalog")(backup.backup)
app.command("restore", rich_help_panel="Catalog")(backup.restore)
app.command("migrate", rich_help_panel="Catalog")(backup.migrate)
app.command("up", rich_help_panel="Stack of this machine")(stack.up)
app.command("down", rich_help_panel="Stack of this machine")(stack.down)
app.command("status", rich_help_panel="Stack of this machine")(stack.status)
app.command("logs", rich_help_panel="Stack of this machine")(stack.logs)
app.command("doctor", rich_help_panel="Stack of this machine")(doctor.doctor)

evaluate = typer.Typer(
    help="Compare results with a known truth, as the paper does.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
evaluate.command("ranking")(ranking.evaluate)
evaluation.add_to(evaluate)
app.add_typer(evaluate, name="evaluate", rich_help_panel="Priority list")
app.add_typer(organs.app, name="organs", rich_help_panel="Atlas")
app.add_typer(pacs.app, name="pacs", rich_help_panel="Cases")
app.add_typer(models.app, name="models", rich_help_panel="Models")
app.add_typer(ensembles.app, name="ensemble", rich_help_panel="Models")


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"atlasloop {version('atlasloop')}")
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    home: Annotated[
        Path | None,
        typer.Option(
            help="Folder of catalog, case store and stack. Default: ATLASLOOP_HOME or .atlasloop",
            file_okay=False,
        ),
    ] = None,
    port_base: Annotated[
        int | None,
        typer.Option(
            min=1024,
            help="Moves all ports of the stack. Default: ATLASLOOP_PORT_BASE or 18000. Keep it in "
            "config.toml of the home to say it once.",
        ),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Version and exit."),
    ] = False,
) -> None:
    """Options of every command."""
    context.obj = Choices(home=home, port_base=port_base, debug=debug)


def main() -> int:
    """Entry point of the console script.

    Returns:
        0; 1 when the command did its work and the answer is "no" (nothing could be imported, some
        cases failed); 2 for errors; 130 after Ctrl-C.
    """
    from atlas_core.errors import AtlasError

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal of another encoding shows escapes; without this, a traceback.
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except AtlasError as error:
        if "--debug" in sys.argv:
            raise
        show_error(str(error))
        return 2
    except KeyboardInterrupt:
        show_error("interrupted")
        return 130
    except BrokenPipeError:
        # The reader of a pipe (head, less) has seen enough; Python would complain again at exit.
        sys.stdout = None
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
