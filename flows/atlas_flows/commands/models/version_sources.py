"""`models train`, `finetune`, `import` and `export`: making versions and passing them on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from atlas_flows.commands.models.app import (
    ReferenceArgument,
    app,
    counting,
    open_catalog,
    parse_reference,
    say,
    store_of,
)
from atlas_flows.commands.options import JsonOption
from atlas_flows.commands.terminal import console, places, write_text

if TYPE_CHECKING:
    from atlas_core.model_spec import ModelSpec
    from atlas_models.importing import ImportedModel

    from atlas_flows.models import TrainingOrder


Resampling = Literal["linear", "nnunet"]
Windows = Literal["body", "volume"]


NameOption = Annotated[str, typer.Option(help="Name in Triton, one per architecture.")]


VersionOption = Annotated[
    int | None, typer.Option(min=0, help="t of M_t; default: the next one of that name.")
]


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
        str | None,
        typer.Option(
            help="nnU-Net: file in each fold's folder; default: checkpoint_final.pth, or "
            "checkpoint_best.pth where there is no other."
        ),
    ] = None,
    orientation: Annotated[
        str | None,
        typer.Option(help="nnU-Net: of the training volumes, where plans do not say: RAS, LPS …"),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="nnU-Net: organ=name of a label that means it (repeatable)."),
    ] = None,
    leave_out: Annotated[
        list[str] | None,
        typer.Option(help="nnU-Net: a label that no organ includes, a lesion say (repeatable)."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="nnU-Net: the dataset it was trained on; see `atlasloop presets`."),
    ] = None,
    overlap: Annotated[
        float | None,
        typer.Option(min=0.0, max=0.75, help="Of neighbouring windows; default: the service's."),
    ] = None,
    mirrored: Annotated[
        bool,
        typer.Option("--mirrored", help="Mean over all mirrored windows: 8 times the work."),
    ] = False,
    resampling: Annotated[
        Resampling, typer.Option(help="Of the CT to the model's grid; nnunet: cubic splines.")
    ] = "linear",
    windows: Annotated[
        Windows,
        typer.Option(
            help="Over the body, or over the volume, where nnU-Net's predictor lays them."
        ),
    ] = "body",
    organs: Annotated[
        str | None,
        typer.Option(
            help="Which, separated by commas and in this order: versions of one name have the "
            "same. Default: all of the atlas that the model knows, in its order."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Import a model from elsewhere as a version that can be promoted.

    Takes an nnU-Net v2 result (also one that TotalSegmentator installed), weights of a MONAI
    network, or any ONNX file with a description of its inputs and outputs. Nothing in these files
    is run as code. docs/how-to/manage-models.md has the formats.

    Example: atlasloop models import --name nnunet --nnunet results/nnUNetTrainer__nnUNetPlans__3d_fullres --orientation RAS
    """  # noqa: E501  an example that can be copied
    from atlas_flows.models.version_import import VersionImport, import_version

    order = VersionImport(
        name=name,
        nnunet=nnunet,
        weights=weights,
        onnx=onnx,
        config=config,
        version=version,
        folds=folds,
        configuration=configuration,
        checkpoint=checkpoint,
        orientation=orientation,
        labels=_labels(label or ()),
        left_out=tuple(leave_out or ()),
        preset=preset,
        overlap=overlap,
        mirrored=mirrored,
        resampling=resampling,
        windows=windows,
        organs=None if organs is None else tuple(organs.split(",")),
    )
    here = places(context)
    with open_catalog(here) as catalog:
        imported = import_version(order, catalog, store_of(here), on_note=say)
    _say_imported(imported, as_json)


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
    """Train a model from scratch on the cases that have labels of some or all organs (step ①).

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
    config: Annotated[
        str | None,
        typer.Argument(
            help="YAML file, or a shipped one: demo/unet, …; default: as the version was trained."
        ),
    ] = None,
    run_folder: RunOption = None,
    dataset: DatasetsOption = None,
    set_: SetOption = None,
    validation_share: ShareOption = 0.1,
    loaders: LoadersOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a version further on the current labels (step ⑦); the result is its next version.

    An imported nnU-Net is trained by nnU-Net itself, which knows steps and learning_rate only.

    Example: atlasloop models finetune unet@0 --set steps=100
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
    graph explains itself, too, by its metadata.

    Example: atlasloop models export unet@1 --output unet-1
    """
    name, version = parse_reference(reference)
    spec = store_of(places(context)).copy_to(name, version, output)
    _say_made(spec, as_json, f"exported to {output}:")


def _order(
    config: str | None,
    reference: str | None,
    run_folder: Path | None,
    datasets: Sequence[str] | None,
    overrides: Sequence[str] | None,
    validation_share: float,
    loaders: int,
) -> TrainingOrder:
    from atlas_models.config import read_override

    from atlas_flows.models import TrainingOrder

    return TrainingOrder(
        config=config,
        parent=None if reference is None else parse_reference(reference),
        run_folder=run_folder,
        datasets=tuple(datasets or ()),
        overrides=dict(map(read_override, overrides or ())),
        validation_share=validation_share,
        loaders=loaders,
    )


def _train(context: typer.Context, order: TrainingOrder, as_json: bool) -> None:
    from atlas_flows.models import train_version

    here = places(context)
    with open_catalog(here) as catalog, counting("training", None) as step:
        spec = train_version(order, here, catalog, store_of(here), step)
    _say_made(spec, as_json, "trained")


def _labels(given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """``("liver=Leber, Leberrand",)`` → {"liver": ("Leber", "Leberrand")}.

    Raises:
        InvalidInput: another form.
    """
    from atlas_core.errors import InvalidInput

    labels: dict[str, tuple[str, ...]] = {}
    for text in given:
        organ, equals, names = text.partition("=")
        if not (organ.strip() and equals and names.strip()):
            raise InvalidInput("malformed label", expected="ORGAN=NAME", got=text)
        said = tuple(name.strip() for name in names.split(","))
        labels[organ.strip()] = (*labels.get(organ.strip(), ()), *said)
    return labels


def _say_imported(imported: ImportedModel, as_json: bool) -> None:
    """The version, what of it is not served, and whether it can be trained further."""
    import json

    from atlas_models.importing import TRAINABLE

    spec, trainable = imported.spec, imported.trainable
    if as_json:
        told = {TRAINABLE: trainable, "left_out": dict(imported.left_out), **imported.origin}
        write_text(None, json.dumps(spec.model_dump(mode="json") | told, indent=2))
        return
    _say_made(spec, as_json, "imported")
    lines = [
        f"{key.replace('_', ' ')}: {value}"
        for key, value in imported.origin.items()
        if key != "config"  # pages of it; `models show` and --json have it
    ]
    lines += [f"left out: {name} ({why})" for name, why in imported.left_out.items()]
    if trainable.startswith("no"):
        lines.append(f"cannot be trained further{trainable.removeprefix('no')}")
    else:
        lines.append(f"trained further by: {trainable}")
    for line in lines:
        console().print(line, markup=False, soft_wrap=True)


def _say_made(spec: ModelSpec, as_json: bool, done: str) -> None:
    if as_json:
        write_text(None, spec.model_dump_json(indent=2))
        return
    console().print(
        f"{done} {spec.name}@{spec.version} ({spec.architecture}): {', '.join(spec.organs)}",
        markup=False,
        soft_wrap=True,
    )
