"""`models`: list, show, train, finetune, import, export, evaluate, compare, promote, rollback."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atlas_flows.commands.terminal import console, places, print_table, progress_bar, write_text

if TYPE_CHECKING:
    from atlas_core.catalog import Catalog
    from atlas_core.model_registry import Promotion
    from atlas_core.model_spec import ModelSpec
    from atlas_core.records import Model

    from atlas_flows.model_store import ModelStore
    from atlas_flows.model_training import TrainingOrder
    from atlas_flows.settings import Places

app = typer.Typer(
    help="Versions of models: train, import, evaluate, put into service, take back.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ReferenceArgument = Annotated[str, typer.Argument(help="NAME, its newest version, or NAME@T.")]
NameOption = Annotated[str, typer.Option(help="Name in Triton, one per architecture.")]
VersionOption = Annotated[
    int | None, typer.Option(min=0, help="t of M_t; default: the next one of that name.")
]
WhyOption = Annotated[str, typer.Option(help="Goes on record.")]
DatasetOption = Annotated[str | None, typer.Option(help="Only its cases.")]
RunOption = Annotated[
    Path | None,
    typer.Option(file_okay=False, help="Checkpoints and curves; a run goes on where it ended."),
]
DatasetsOption = Annotated[
    list[str] | None, typer.Option(help="Only cases of it (repeatable); default: all.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Field of the configuration, for instance steps=200."),
]
ShareOption = Annotated[
    float,
    typer.Option(min=0.0, max=0.9, help="Of the cases, held out by their ids; promote judges by."),
]
LoadersOption = Annotated[
    int,
    typer.Option(min=0, max=64, help="Threads that prepare patches ahead; a GPU needs some."),
]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Only the first N cases.")]


# --- what there is --------------------------------------------------------------------------------


@app.command("list")
def list_models(context: typer.Context, as_json: JsonOption = False) -> None:
    """List every version that the catalog knows, and which one is in service.

    Example: atlasloop models list --json
    """
    here = places(context)
    with _catalog(here) as catalog:
        _register(here, catalog)
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
                    "mean Dice": _percent(row["mean_dice"]),
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
    from atlas_core.model_registry import learnt, promotions

    here = places(context)
    with _catalog(here) as catalog:
        _register(here, catalog)
        model = _registered(catalog, reference)
        ref = model.spec.ref
        told = _row(here, catalog, model) | {
            "spec": model.spec.model_dump(mode="json"),
            "provenance": model.provenance,
            "metrics": model.metrics,
            "learnt_from": [label.model_dump(mode="json") for label in learnt(catalog, ref)],
            "promotions": [
                promotion.model_dump(mode="json")
                for promotion in promotions(catalog, ref.name)
                if promotion.model == ref
            ],
        }
    if as_json:
        write_text(None, json.dumps(told, indent=2))
        return
    spec = model.spec
    lines = {
        "model": f"{spec.name}@{spec.version} ({spec.architecture}), {told['state']}",
        "graph": f"sha256 {spec.sha256}",
        "organs": ", ".join(spec.organs),
        "grid": f"{_times(spec.spacing_mm)} mm, windows of {_times(spec.patch)} voxels",
        "intensities": f"{spec.hu_window[0]:g} to {spec.hu_window[1]:g} HU, {spec.activation}",
        "parent": told["parent"] or "–",
        "learnt from": f"{len(told['learnt_from'])} labels",
        "mean Dice": _percent(told["mean_dice"]),
        **{f"  {key}": value[:200] for key, value in model.provenance.items()},
    }
    for name, value in lines.items():
        console().print(f"{name:>14}  {value}", markup=False, soft_wrap=True)
    for promotion in told["promotions"]:
        console().print(_told(promotion), markup=False, soft_wrap=True)


# --- where they come from -------------------------------------------------------------------------


@app.command("import")
def import_model(
    context: typer.Context,
    name: NameOption,
    nnunet: Annotated[
        Path | None,
        typer.Option(
            exists=True, file_okay=False, help="nnU-Net v2 result folder, with plans.json."
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="Weights of a MONAI network; needs --config."
        ),
    ] = None,
    onnx: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="ONNX file; needs --config."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="YAML that describes the weights or the graph."
        ),
    ] = None,
    version: VersionOption = None,
    folds: Annotated[
        str, typer.Option(help="nnU-Net: `all` averages those there are; or `0,2`.")
    ] = "all",
    configuration: Annotated[
        str | None, typer.Option(help="nnU-Net: of the plans; default: as it was trained.")
    ] = None,
    checkpoint: Annotated[
        str, typer.Option(help="nnU-Net: file in each fold's folder.")
    ] = "checkpoint_final.pth",
    orientation: Annotated[
        str | None,
        typer.Option(help="nnU-Net: of the training volumes, where plans do not tell: RAS, LPS …"),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="nnU-Net: organ=name of a label that means it (repeatable)."),
    ] = None,
    organs: Annotated[
        str | None,
        typer.Option(
            help="Which, separated by commas and in this order: models of one ensemble have the "
            "same. Default: all that the model knows, in the order of AbdomenAtlas."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a model from elsewhere one of ours: a version that can be promoted.

    Takes an nnU-Net v2 result (also one that TotalSegmentator installed), weights of a MONAI
    network, or any ONNX file with a description of its inputs and outputs. Nothing in these files
    is run as code. docs/models.md has the formats.

    Example: atlasloop models import --name nnunet --nnunet results/nnUNetTrainer__nnUNetPlans__3d_fullres --orientation RAS
    """  # noqa: E501  an example that can be copied
    from atlas_core.errors import InvalidInput
    from atlas_core.organs import ABDOMEN_ATLAS

    given = [option for option in (nnunet, weights, onnx) if option is not None]
    if len(given) != 1 or (nnunet is None) != (config is not None):
        raise InvalidInput(
            "say what to import",
            expected="--nnunet FOLDER, --weights FILE --config YAML or --onnx FILE --config YAML",
        )
    scheme = ABDOMEN_ATLAS if organs is None else ABDOMEN_ATLAS.select(organs.split(","))
    here, store = places(context), _store(places(context))
    with _catalog(here) as catalog, store.incoming() as folder:
        t = _next(store, catalog, name) if version is None else version
        target = Path(folder) / name
        if nnunet is not None:
            from atlas_models.nnunet import NnunetChoices, import_nnunet

            spec = import_nnunet(
                nnunet,
                target,
                NnunetChoices(
                    name=name,
                    version=t,
                    configuration=configuration,
                    folds="all" if folds == "all" else tuple(folds.split(",")),
                    checkpoint=checkpoint,
                    orientation=orientation,
                    labels=_labels(label or ()),
                ),
                scheme,
            )
        elif weights is not None and config is not None:
            from atlas_models.monai_import import import_monai

            spec = import_monai(weights, config, target, name=name, version=t, scheme=scheme)
        else:
            from atlas_models.onnx_import import import_onnx

            assert onnx is not None
            assert config is not None
            spec = import_onnx(onnx, config, target, name=name, version=t, scheme=scheme)
        if organs is not None and spec.organs != scheme.names:
            raise InvalidInput(
                "the model does not know all these organs",
                expected=organs,
                got=",".join(spec.organs),
            )
        store.add(target, catalog, provenance=_origin(given[0], config))
    _say_made(spec, as_json, "imported")


@app.command()
def train(
    context: typer.Context,
    config: Annotated[str, typer.Argument(help="YAML file, or a shipped one: demo/unet, …")],
    run_folder: RunOption = None,
    dataset: DatasetsOption = None,
    set_: SetOption = None,
    validation_share: ShareOption = 0.1,
    loaders: LoadersOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a model from scratch on the cases that have labels, in part or whole (step ①).

    Stopped at any moment, the same command goes on where it ended. The result is a new version,
    which is not in service yet: see promote.

    Example: atlasloop models train demo/unet --set steps=200
    """
    order = _order(config, None, run_folder, dataset, set_, validation_share, loaders)
    _train(context, order, as_json)


@app.command()
def finetune(
    context: typer.Context,
    reference: ReferenceArgument,
    config: Annotated[str, typer.Argument(help="YAML file, or a shipped one: demo/unet, …")],
    run_folder: RunOption = None,
    dataset: DatasetsOption = None,
    set_: SetOption = None,
    validation_share: ShareOption = 0.1,
    loaders: LoadersOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a version further on the labels of today (step ⑦); the result is its next version.

    Example: atlasloop models finetune unet@0 demo/unet --set steps=100
    """
    order = _order(config, reference, run_folder, dataset, set_, validation_share, loaders)
    _train(context, order, as_json)


@app.command()
def export(
    context: typer.Context,
    reference: ReferenceArgument,
    output: Annotated[Path, typer.Option(file_okay=False, help="A folder that is not there yet.")],
    as_json: JsonOption = False,
) -> None:
    """Copy a version to a folder: graph, description, weights and provenance.

    The folder holds all that another site needs, to serve the model or to train it further; the
    graph alone explains itself too, by its metadata.

    Example: atlasloop models export unet@1 --output unet-1
    """
    name, version = _parse(reference)
    spec = _store(places(context)).copy_to(name, version, output)
    _say_made(spec, as_json, f"exported to {output}:")


# --- how good they are ----------------------------------------------------------------------------


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
    from atlas_core.case_store import CaseStore
    from atlas_core.model_registry import record_evaluation
    from atlas_models.agreement import as_csv
    from atlasloop.client import AttentionClient

    from atlas_flows import model_evaluation

    here = places(context)
    with _catalog(here) as catalog, AttentionClient(here.attention_address) as client:
        specs = [_loaded(here, reference) for reference in references]
        organs = [organ for organ in specs[0].organs if all(organ in s.organs for s in specs)]
        refs = [spec.ref for spec in specs]
        cases = model_evaluation.true_cases(
            catalog, organs, dataset=dataset, without=refs, limit=limit
        )
        results = {}
        with _counting("evaluating", len(cases) * len(specs)) as step:
            for spec in specs:
                evaluation = model_evaluation.evaluate(
                    spec, cases, client, CaseStore(here.store), on_case=lambda *_: step()
                )
                record_evaluation(catalog, evaluation)
                results[f"{spec.name}@{spec.version}"] = evaluation.cases
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
    from atlas_core.model_registry import evaluations

    from atlas_flows.model_evaluation import on_the_same_truth

    with _catalog(places(context)) as catalog:
        models = [_registered(catalog, reference).spec.ref for reference in (first, second)]
        known = on_the_same_truth({ref: evaluations(catalog, ref) for ref in models})
    results = {f"{e.model.name}@{e.model.version}": e.cases for e in known}
    _show_evaluations(results, as_json)


# --- what serves ----------------------------------------------------------------------------------


@app.command()
def promote(
    context: typer.Context,
    reference: ReferenceArgument,
    force: Annotated[
        bool, typer.Option("--force", help="Also a version that is worse; goes on record.")
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
    """Put a version into service, after it has proved itself beside the one that is.

    It is loaded under its own number, must answer real windows, and is evaluated on the cases with
    original or revised labels that it was not trained on. The running service switches without
    losing a request. Whatever fails, the version in service stays.

    Example: atlasloop models promote unet@1 --why "fine-tuned on 40 revisions"
    """
    from atlas_flows import model_lifecycle

    here = places(context)
    name, version = _parse(reference)
    order = model_lifecycle.Order(force=force, why=why, dataset=dataset, limit=limit)
    with _catalog(here) as catalog:
        _, exported = _store(here).find(name, version)
        site = model_lifecycle.Site.of(here, catalog, margin)
        promotion = model_lifecycle.promote(exported, site, order, _tell)
        _register(here, catalog)
    _show_promotion(promotion, as_json)


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
    """Put the version back that served before; seconds, as it is still loaded.

    Example: atlasloop models rollback unet --why "misses the gallbladder"
    """
    from atlas_flows import model_lifecycle

    here = places(context)
    with _catalog(here) as catalog:
        site = model_lifecycle.Site.of(here, catalog)
        promotion = model_lifecycle.rollback(name, site, to=to, why=why, on_event=_tell)
    _show_promotion(promotion, as_json)


# --- how it is done -------------------------------------------------------------------------------


def _order(
    config: str,
    reference: str | None,
    run_folder: Path | None,
    datasets: Sequence[str] | None,
    overrides: Sequence[str] | None,
    validation_share: float,
    loaders: int,
) -> TrainingOrder:
    from atlas_flows.model_training import TrainingOrder

    return TrainingOrder(
        config=config,
        parent=None if reference is None else _parse(reference),
        run_folder=run_folder,
        datasets=tuple(datasets or ()),
        overrides=_assignments(overrides or ()),
        validation_share=validation_share,
        loaders=loaders,
    )


def _train(context: typer.Context, order: TrainingOrder, as_json: bool) -> None:
    from atlas_flows.model_training import train_version

    here = places(context)
    with _catalog(here) as catalog, _counting("training", None) as step:
        spec = train_version(order, here, catalog, _store(here), step)
    _say_made(spec, as_json, "trained")


@contextmanager
def _catalog(here: Places) -> Iterator[Catalog]:
    from atlas_core.catalog import Catalog

    here.embedded.home.mkdir(parents=True, exist_ok=True)
    with Catalog.open(here.catalog_url) as catalog:
        yield catalog


def _register(here: Places, catalog: Catalog) -> None:
    """What is served is known, whoever put it into the repository."""
    from atlas_flows.model_server import model_repository
    from atlas_flows.registration import register_installed

    register_installed(model_repository(here), here.embedded.models_dir, catalog)


def _store(here: Places) -> ModelStore:
    from atlas_flows.model_server import model_store

    return model_store(here)


def _parse(reference: str) -> tuple[str, int | None]:
    from atlas_core.model_spec import ModelRef

    return ModelRef.parse(reference)


def _next(store: ModelStore, catalog: Catalog, name: str) -> int:
    from atlas_core.model_registry import next_version

    return next_version(catalog, name, store.versions(name))


def _registered(catalog: Catalog, reference: str) -> Model:
    """A version that the catalog knows; of one registered twice, the later.

    Raises:
        NotFound: there is none.
    """
    from atlas_core.errors import NotFound
    from atlas_core.model_registry import find_models

    found = find_models(catalog, *_parse(reference))
    if not found:
        known = [f"{m.spec.name}@{m.spec.version}" for m in catalog.models()]
        raise NotFound(
            f"the catalog knows no model {reference}", expected=", ".join(known) or "none yet"
        )
    return found[-1]


def _loaded(here: Places, reference: str) -> ModelSpec:
    """A version that the server has loaded; NAME alone: the one in service.

    Raises:
        NotFound: it is not loaded.
    """
    from atlas_core.errors import NotFound

    from atlas_flows.model_server import model_repository

    name, version = _parse(reference)
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


def _row(here: Places, catalog: Catalog, model: Model) -> dict[str, Any]:
    from atlas_core.model_registry import evaluations
    from atlas_models.agreement import summarise

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
    from atlas_flows.model_server import model_repository

    repository = model_repository(here)
    if spec in repository.served(spec.name):
        in_service = repository.in_service(spec.name) == spec.version
        return "in service" if in_service else "loaded"
    return "installed" if spec in repository.installed(spec.name) else "stored"


def _labels(given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    labels: dict[str, tuple[str, ...]] = {}
    for organ, value in _assignments(given).items():
        labels[organ] = (*labels.get(organ, ()), *str(value).split(","))
    return labels


def _assignments(given: Sequence[str]) -> dict[str, Any]:
    """``("steps=200",)`` → {"steps": 200}; values are read as YAML.

    Raises:
        InvalidInput: something without a "=".
    """
    import yaml
    from atlas_core.errors import InvalidInput

    pairs = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InvalidInput("malformed assignment", expected="NAME=VALUE", got=text)
        pairs[key.strip()] = yaml.safe_load(value)
    return pairs


def _origin(source: Path, config: Path | None) -> dict[str, str]:
    """Names and checksums of what was imported; no folders, which may hold names of people."""
    from hashlib import sha256

    files = [source] if source.is_file() else sorted(source.glob("*.json"))
    origin = {
        f"sha256 of {path.name}": sha256(path.read_bytes()).hexdigest()
        for path in (*files, *([config] if config else []))
    }
    return {"imported_from": source.name, **origin}


def _say_made(spec: ModelSpec, as_json: bool, done: str) -> None:
    if as_json:
        write_text(None, spec.model_dump_json(indent=2))
        return
    console().print(
        f"{done} {spec.name}@{spec.version} ({spec.architecture}): {', '.join(spec.organs)}",
        markup=False,
        soft_wrap=True,
    )


def _tell(line: str) -> None:
    console(stderr=True).print(line, style="dim", markup=False)


def _show_promotion(promotion: Promotion, as_json: bool) -> None:
    if as_json:
        write_text(None, promotion.model_dump_json(indent=2))
    else:
        told = _told(promotion.model_dump(mode="json"))
        console().print(told, markup=False, soft_wrap=True)


def _told(promotion: Mapping[str, Any]) -> str:
    """A promotion in one line."""
    model, evidence = promotion["model"], promotion["evidence"]
    previous = promotion["previous_version"]
    told = (
        f"{promotion['created_at'][:16].replace('T', ' ')} {promotion['kind'].replace('_', ' ')} "
        f"{model['name']}@{model['version']} by {promotion['who']}, before: "
        f"{'none' if previous is None else previous}"
    )
    if "mean_dice" in evidence:
        before = evidence.get("mean_dice_before")
        told += f"; mean Dice {_percent(evidence['mean_dice'])}"
        told += f" against {_percent(before)}" if before is not None else ""
        told += f" on {evidence['cases']:.0f} cases"
    told += "; forced" if promotion["forced"] else ""
    return f"{told}; {promotion['why']}" if promotion["why"] else told


def _show_evaluations(results: Mapping[str, Sequence[Any]], as_json: bool) -> None:
    from atlas_models.agreement import FIGURES, compare, summarise
    from atlas_models.agreement import as_json as summary_json

    summaries = {model: summarise(cases) for model, cases in results.items()}
    names = list(results)
    differences = compare(results[names[0]], results[names[1]]) if len(names) == 2 else {}
    if as_json:
        told = {
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
        write_text(None, json.dumps(told, indent=2))
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


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _times(values: Sequence[float]) -> str:
    return " × ".join(f"{value:g}" for value in values)


@contextmanager
def _counting(what: str, total: int | None) -> Iterator[Callable[..., None]]:
    """A progress bar; call what it yields after each step, with (done, total) where they vary."""
    with progress_bar(what) as progress:
        task = progress.add_task(what, total=total)

        def step(done: int | None = None, of: int | None = None) -> None:
            if done is None:
                progress.advance(task)
            else:
                progress.update(task, completed=done, total=of)

        yield step
