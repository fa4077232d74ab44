"""The `models` group of commands: its options, and what several of its commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atlas_flows.commands.terminal import console, progress_bar

if TYPE_CHECKING:
    from atlas_core.catalog import Catalog
    from atlas_core.records import Model

    from atlas_flows.models import ModelStore
    from atlas_flows.settings import Places

app = typer.Typer(
    help="Versions of models: train, import, evaluate, put into service, take back.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

ReferenceArgument = Annotated[str, typer.Argument(help="NAME, its newest version, or NAME@T.")]
WhyOption = Annotated[str, typer.Option(help="Goes on record.")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Only the first N cases.")]


@contextmanager
def open_catalog(here: Places) -> Iterator[Catalog]:
    from atlas_core.catalog import Catalog

    here.embedded.make_home()
    with Catalog.open(here.catalog_url) as catalog:
        yield catalog


def register_served(here: Places, catalog: Catalog) -> None:
    """Register what Triton serves, however it came into the repository."""
    from atlas_flows.models import model_repository, register_installed

    register_installed(model_repository(here), here.embedded.models_dir, catalog)


def store_of(here: Places) -> ModelStore:
    from atlas_flows.models import model_store

    return model_store(here)


def parse_reference(reference: str) -> tuple[str, int | None]:
    from atlas_core.model_spec import ModelRef

    return ModelRef.parse(reference)


def registered(catalog: Catalog, reference: str) -> Model:
    """A registered version; of two with this number, the later one.

    Raises:
        NotFound: there is none.
    """
    from atlas_core.catalog import find_models
    from atlas_core.errors import NotFound

    found = find_models(catalog, *parse_reference(reference))
    if not found:
        known = [f"{m.spec.name}@{m.spec.version}" for m in catalog.models()]
        raise NotFound(
            f"the catalog knows no model {reference}", expected=", ".join(known) or "none yet"
        )
    return found[-1]


def say(line: str) -> None:
    console(stderr=True).print(line, style="dim", markup=False)


def promotion_line(promotion: Mapping[str, Any]) -> str:
    """A promotion in one line."""
    model, evidence = promotion["model"], promotion["evidence"]
    previous = promotion["previous_version"]
    line = (
        f"{promotion['created_at'][:16].replace('T', ' ')} {promotion['kind'].replace('_', ' ')} "
        f"{model['name']}@{model['version']} by {promotion['who']}, before: "
        f"{'none' if previous is None else previous}"
    )
    if "mean_dice" in evidence:
        before = evidence.get("mean_dice_before")
        line += f"; mean Dice {percent(evidence['mean_dice'])}"
        line += f" against {percent(before)}" if before is not None else ""
        line += f" on {evidence['cases']:.0f} cases"
    line += "; forced" if promotion["forced"] else ""
    return f"{line}; {promotion['why']}" if promotion["why"] else line


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


@contextmanager
def counting(what: str, total: int | None) -> Iterator[Callable[..., None]]:
    """A progress bar; call what it yields after each step, with (done, total) where they vary."""
    with progress_bar(what) as progress:
        task = progress.add_task(what, total=total)

        def step(done: int | None = None, of: int | None = None) -> None:
            if done is None:
                progress.advance(task)
            else:
                progress.update(task, completed=done, total=of)

        yield step
