"""An nnU-Net v2 result folder as one of our models.

    <result>/plans.json  dataset.json  fold_<x>/checkpoint_final.pth

What `nnUNetv2_train` leaves, and what TotalSegmentator installs. The network is built by
nnU-Net's own library from the plans; normalisation, axis order, folds and softmax go into the
graph, so that a client sends Hounsfield units on the plans' spacing and nothing else.

Files are data here: classes are looked up in a short list, never imported by the name that a file
gives, and checkpoints are read without running what they may carry.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from atlas_core.errors import ConfigurationError, CorruptFile, InvalidInput, NotFound
from atlas_core.model_spec import ModelSpec
from atlas_core.organs import OrganScheme
from torch import nn

from atlas_models.exporting import (
    NO_SHA256,
    ExportedNetwork,
    FoldMean,
    Head,
    InputTransform,
    build_graph,
    read_checkpoint,
    tensors_of,
    write_graph,
)
from atlas_models.importing.organ_synonyms import organ_called

NNUNET_KEY = "atlasloop.nnunet"
"""Metadata of the graph: where it comes from."""

Orientation = str
"""Towards where the three axes of the training volumes' files run: "RAS", "LPS", …"""

CT_NORMALISATION = "CTNormalization"
NO_NORMALISATION = "NoNormalization"

_WIDE_HU = (-32768.0, 32767.0)
"""Clips nothing of a CT: where a plan does not normalise."""

_OPPOSITE = {"L": "R", "P": "A", "I": "S"}

_REORIENTING_READERS = {"NibabelIOWithReorient"}

_TRUSTED = {
    "torch.nn.modules.conv.Conv3d": nn.Conv3d,
    "torch.nn.modules.instancenorm.InstanceNorm3d": nn.InstanceNorm3d,
    "torch.nn.modules.batchnorm.BatchNorm3d": nn.BatchNorm3d,
    "torch.nn.modules.dropout.Dropout3d": nn.Dropout3d,
    "torch.nn.LeakyReLU": nn.LeakyReLU,
    "torch.nn.modules.activation.LeakyReLU": nn.LeakyReLU,
    "torch.nn.ReLU": nn.ReLU,
    "torch.nn.modules.activation.ReLU": nn.ReLU,
}
"""Classes that a plan may name."""


@dataclass(frozen=True)
class NnunetChoices:
    """What a user decides about an import.

    Attributes:
        name: of the model in Triton.
        version: t of M_t.
        configuration: of the plans; None: the one that the checkpoint was trained with.
        folds: "all" that are there (their logits averaged), or some of them by name.
        checkpoint: file in each fold's folder.
        orientation: of the training volumes; None: as the plans say, where they do.
        labels: organ → names of the dataset's labels that mean it, beyond the names we know.
    """

    name: str
    version: int = 0
    configuration: str | None = None
    folds: tuple[str, ...] | Literal["all"] = "all"
    checkpoint: str = "checkpoint_final.pth"
    orientation: Orientation | None = None
    labels: Mapping[str, tuple[str, ...]] | None = None


@dataclass(frozen=True)
class NnunetConfiguration:
    """One configuration of ``plans.json``, as far as prediction needs it.

    Attributes:
        spacing_mm, patch: along the network's own axes.
        axes: the network's axis i is axis axes[i] of (z, y, x).
        input_transform: normalisation and axes.
        architecture: class name of the network in `dynamic_network_architectures`.
        arguments: of that class, classes by name.
        classes: names of the arguments that are classes.
    """

    name: str
    spacing_mm: tuple[float, float, float]
    patch: tuple[int, int, int]
    input_transform: InputTransform
    architecture: str
    arguments: Mapping[str, Any]
    classes: tuple[str, ...]


def import_nnunet(
    result: Path, folder: Path, choices: NnunetChoices, scheme: OrganScheme
) -> ModelSpec:
    """Write the nnU-Net in `result` as an exported model in `folder`.

    Raises:
        NotFound: a file is missing.
        CorruptFile: a file cannot be read, or a plan lacks an entry.
        InvalidInput: a network, normalisation or label map that cannot be served, weights that do
            not fit the plans, an orientation that must be given.
    """
    served, spec = load_nnunet(result, choices, scheme)
    note = {"dataset": _json(result / "plans.json").get("dataset_name", ""), "folds": choices.folds}
    # In float32, as they came: rounded to float16 they would be off by 1e-3.
    return write_graph(build_graph(served, spec, {NNUNET_KEY: json.dumps(note)}), spec, folder)


def load_nnunet(
    result: Path, choices: NnunetChoices, scheme: OrganScheme
) -> tuple[ExportedNetwork, ModelSpec]:
    """The nnU-Net in `result` as a torch module with our interface, and its spec (unhashed)."""
    plans, dataset = _json(result / "plans.json"), _json(result / "dataset.json")
    checkpoints = [read_checkpoint(fold / choices.checkpoint) for fold in _folds(result, choices)]
    case = f"{result.name}/{choices.checkpoint}"
    plan = read_configuration(plans, _configuration(checkpoints[0], choices, plans, case), choices)
    _require_one_ct(dataset, result.name)
    organs, head, outputs = read_labels(dataset, choices.labels or {}, scheme, result.name)
    networks = [
        _with_weights(build(plan, outputs), tensors_of(content, "network_weights", case), case)
        for content in checkpoints
    ]
    network = networks[0] if len(networks) == 1 else FoldMean(networks)
    served = ExportedNetwork(network, plan.input_transform, head).eval()
    return served, _spec(plan, organs, head, choices)


def _spec(
    plan: NnunetConfiguration, organs: Sequence[str], head: Head, choices: NnunetChoices
) -> ModelSpec:
    # From the network's axes to z, y, x, and from there to x, y, z.
    zyx = [plan.input_transform.axes.index(axis) for axis in range(3)]
    assert head.activation != "none"
    return ModelSpec(
        name=choices.name,
        version=choices.version,
        architecture=f"nnunet_{plan.architecture.lower()}",
        organs=tuple(organs),
        spacing_mm=_triple([plan.spacing_mm[own] for own in reversed(zyx)]),
        patch=_int_triple([plan.patch[own] for own in reversed(zyx)]),
        hu_window=(plan.input_transform.low, plan.input_transform.high),
        activation=head.activation,
        sha256=NO_SHA256,
    )


# --- folder and checkpoints -----------------------------------------------------------------------


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(
            f"no nnU-Net v2 result in folder {path.parent.name}",
            expected=f"{path.name} and fold_<x>/checkpoint_final.pth",
            remedy="name the folder <trainer>__<plans>__<configuration>",
        ) from None
    except ValueError as error:
        raise CorruptFile(f"{path.name} is not JSON", case=path.parent.name, got=error) from None
    if not isinstance(content, dict):
        raise CorruptFile(f"{path.name} is no JSON object", case=path.parent.name)
    return content


def _folds(result: Path, choices: NnunetChoices) -> list[Path]:
    there = sorted(path for path in result.glob("fold_*") if (path / choices.checkpoint).is_file())
    if choices.folds == "all":
        # A network trained on all cases stands for itself; it is not averaged with the folds.
        chosen = [path for path in there if path.name != "fold_all"] or there
    else:
        wanted = [f"fold_{fold}" for fold in choices.folds]
        chosen = [result / name for name in wanted]
        missing = [path.name for path in chosen if path not in there]
        if missing:
            raise NotFound(
                f"no {choices.checkpoint} in {', '.join(missing)}",
                case=result.name,
                expected=", ".join(path.name for path in there) or "a fold",
            )
    if not chosen:
        raise NotFound(
            "the result holds no trained fold",
            case=result.name,
            expected=f"fold_<x>/{choices.checkpoint}",
        )
    return chosen


def _configuration(
    content: Mapping[str, Any], choices: NnunetChoices, plans: Mapping[str, Any], case: str
) -> str:
    if choices.configuration:
        return choices.configuration
    arguments = content.get("init_args")
    named = arguments.get("configuration") if isinstance(arguments, Mapping) else None
    if isinstance(named, str):
        return named
    known = ", ".join(plans.get("configurations", {}))
    raise InvalidInput(
        "the checkpoint does not say which configuration it was trained with",
        case=case,
        remedy=f"name it (--configuration): {known}",
    )


def _with_weights(network: nn.Module, weights: Mapping[str, torch.Tensor], case: str) -> nn.Module:
    # Saved from several GPUs, or after torch.compile.
    stripped = {
        re.sub(r"^(module\.|_orig_mod\.)+", "", name): tensor for name, tensor in weights.items()
    }
    expected = network.state_dict()
    for name, tensor in expected.items():
        if name not in stripped:
            raise InvalidInput("the weights lack a tensor of the network", case=case, got=name)
        if stripped[name].shape != tensor.shape:
            raise InvalidInput(
                f"tensor {name} does not fit the plans",
                case=case,
                expected=tuple(tensor.shape),
                got=tuple(stripped[name].shape),
                remedy="plans.json, dataset.json and checkpoint must come from one training",
            )
    # Deep supervision's extra outputs are in the file and not needed.
    network.load_state_dict({name: stripped[name].float() for name in expected})
    return network.eval()


# --- plans ----------------------------------------------------------------------------------------


def read_configuration(
    plans: Mapping[str, Any], name: str, choices: NnunetChoices
) -> NnunetConfiguration:
    """One configuration of ``plans.json``.

    Raises:
        InvalidInput: there is none of that name, or it is not a 3D network on one CT channel.
        CorruptFile: an entry is missing.
    """
    content = _resolved(plans, name)
    case = f"plans.json, configuration {name}"
    try:
        if len(content["patch_size"]) != 3:
            raise InvalidInput(
                "only 3D configurations can be served", case=case, got=content["patch_size"]
            )
        if content.get("previous_stage"):
            raise InvalidInput(
                "the second stage of a cascade needs the first one's labels",
                case=case,
                remedy="import 3d_fullres or 3d_lowres",
            )
        low, high, shift, scale = _intensities(plans, content, case)
        axes = _int_triple(plans["transpose_forward"])
        flipped = _flipped(_orientation(plans, choices))
        architecture, arguments, classes = _architecture(content, case)
        return NnunetConfiguration(
            name=name,
            spacing_mm=_triple(content["spacing"]),
            patch=_int_triple(content["patch_size"]),
            input_transform=InputTransform(low, high, shift, scale, axes, flipped),
            architecture=architecture,
            arguments=arguments,
            classes=classes,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFile(
            "an entry of the plans is missing or of another form", case=case, got=repr(error)
        ) from None


def _resolved(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The configuration with what it inherits."""
    configurations = plans.get("configurations", {})
    chain: list[str] = []
    while name:
        if name not in configurations or name in chain:
            raise InvalidInput(
                f"plans.json has no usable configuration {name!r}",
                expected=", ".join(configurations) or "configurations",
                got=" ← ".join([*chain, name]),
            )
        chain.append(name)
        name = configurations[name].get("inherits_from", "")
    content: dict[str, Any] = {}
    for one in reversed(chain):
        content.update(configurations[one])
    return content


def _intensities(
    plans: Mapping[str, Any], content: Mapping[str, Any], case: str
) -> tuple[float, float, float, float]:
    """Lower and upper clip, shift and scale of the one input channel."""
    schemes = content["normalization_schemes"]
    if len(schemes) != 1 or schemes[0] not in (CT_NORMALISATION, NO_NORMALISATION):
        raise InvalidInput(
            "only a network on one CT channel can be served",
            case=case,
            expected=f"normalization_schemes: [{CT_NORMALISATION}]",
            got=schemes,
            remedy="a normalisation by each volume's own mean cannot be part of a graph",
        )
    if schemes[0] == NO_NORMALISATION:
        return (*_WIDE_HU, 0.0, 1.0)
    key = "foreground_intensity_properties_per_channel"
    # Before nnU-Net 2.0.1, and so in some published models, under another name.
    properties = plans.get(key) or plans["foreground_intensity_properties_by_modality"]
    channel = properties["0"]
    return (
        float(channel["percentile_00_5"]),
        float(channel["percentile_99_5"]),
        float(channel["mean"]),
        max(float(channel["std"]), 1e-8),  # as CTNormalization does
    )


def _orientation(plans: Mapping[str, Any], choices: NnunetChoices) -> Orientation:
    """Towards where the axes (x, y, z) of the training volumes run."""
    if choices.orientation is not None:
        return choices.orientation.upper()
    if plans.get("image_reader_writer") in _REORIENTING_READERS:
        return "RAS"
    if "TotalSegmentator" in str(plans.get("dataset_name", "")):
        return "RAS"  # TotalSegmentator turns every volume to it, for training and prediction
    raise InvalidInput(
        "nnU-Net takes volumes as their files lie, and the plans do not say how that is",
        case="plans.json",
        expected="the orientation of the training volumes",
        remedy="give it: --orientation RAS (or LPS, as SimpleITK writes DICOM series); left and "
        "right would be mixed up otherwise",
    )


def _flipped(orientation: Orientation) -> tuple[int, ...]:
    """Of (z, y, x), the axes that run against RAS+.

    Raises:
        InvalidInput: another order of axes than x, y, z, or no orientation at all.
    """
    axes = [_OPPOSITE.get(letter, letter) for letter in orientation]
    if axes != ["R", "A", "S"]:
        raise InvalidInput(
            "this orientation cannot be imported",
            expected="three letters in the order R/L, A/P, S/I",
            got=orientation,
        )
    return tuple(2 - axis for axis, letter in enumerate(orientation) if letter in _OPPOSITE)[::-1]


def _architecture(
    content: Mapping[str, Any], case: str
) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    """Class name and arguments of the network, also out of plans from before nnU-Net 2.4."""
    if "architecture" in content:
        network = content["architecture"]
        name = str(network["network_class_name"]).rpartition(".")[2]
        return name, dict(network["arch_kwargs"]), tuple(network["_kw_requires_import"])
    name = str(content["UNet_class_name"])
    stages = len(content["n_conv_per_stage_encoder"])
    widths = [
        min(content["UNet_base_num_features"] * 2**stage, content["unet_max_num_features"])
        for stage in range(stages)
    ]
    blocks = "n_blocks_per_stage" if name == "ResidualEncoderUNet" else "n_conv_per_stage"
    arguments = {
        "n_stages": stages,
        "features_per_stage": widths,
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": content["conv_kernel_sizes"],
        "strides": content["pool_op_kernel_sizes"],
        blocks: content["n_conv_per_stage_encoder"],
        "n_conv_per_stage_decoder": content["n_conv_per_stage_decoder"],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return name, arguments, ("conv_op", "norm_op", "nonlin")


def build(plan: NnunetConfiguration, outputs: int) -> nn.Module:
    """The network of a plan with `outputs` channels, freshly initialised.

    Raises:
        InvalidInput: a class that is not served.
        ConfigurationError: nnU-Net's network library is not installed.
    """
    # Takes a second, and only imports of nnU-Nets need it.
    try:
        from dynamic_network_architectures.architectures import unet
    except ImportError:
        raise ConfigurationError(
            "nnU-Net's network library is not installed",
            remedy="run `make setup-dev`, or pip install --no-deps -r constraints-nnunet.txt",
        ) from None

    networks = {one.__name__: one for one in (unet.PlainConvUNet, unet.ResidualEncoderUNet)}
    if plan.architecture not in networks:
        raise InvalidInput(
            "this network of nnU-Net is not served",
            expected=" or ".join(networks),
            got=plan.architecture,
        )
    arguments = dict(plan.arguments)
    for name in plan.classes:
        arguments[name] = _trusted(arguments.get(name), name)
    arguments["deep_supervision"] = False
    try:
        network: nn.Module = networks[plan.architecture](
            input_channels=1, num_classes=outputs, **arguments
        )
    except (TypeError, AssertionError, ValueError) as error:
        raise InvalidInput(
            f"the plans do not describe a {plan.architecture}", case="plans.json", got=error
        ) from None
    return network


def _trusted(named: object, argument: str) -> type[nn.Module] | None:
    if named is None:
        return None
    if named not in _TRUSTED:
        raise InvalidInput(
            f"the plans name a class for {argument} that is not served",
            case="plans.json",
            expected=", ".join(_TRUSTED),
            got=named,
        )
    return _TRUSTED[str(named)]


# --- labels ---------------------------------------------------------------------------------------


def read_labels(
    dataset: Mapping[str, Any],
    more: Mapping[str, tuple[str, ...]],
    scheme: OrganScheme,
    case: str,
) -> tuple[tuple[str, ...], Head, int]:
    """Our organs that a dataset's labels cover, the head that reads them, and its channels.

    Raises:
        InvalidInput: no label is an organ of ours, or the labels are of another form.
    """
    labels = dataset.get("labels")
    if not isinstance(labels, Mapping) or labels.get("background") != 0:
        raise InvalidInput(
            "dataset.json has no labels of nnU-Net v2",
            case=case,
            expected='"labels": {"background": 0, "liver": 1, …}',
            got=labels,
        )
    regions = any(isinstance(value, list | tuple) and len(value) > 1 for value in labels.values())
    own = {name: value for name, value in labels.items() if name not in ("background", "ignore")}
    if regions:
        # Channel c is the c-th region, each with a sigmoid of its own.
        channel_of = {name: channel for channel, name in enumerate(own)}
        outputs = len(own)
    else:
        channel_of = {name: _label_id(value, name, case) for name, value in own.items()}
        outputs = max(channel_of.values(), default=0) + 1
        if sorted(channel_of.values()) != list(range(1, outputs)):
            raise InvalidInput(
                "label ids of dataset.json are not consecutive",
                case=case,
                expected=f"1 to {len(own)}",
                got=sorted(channel_of.values()),
            )
    groups = _groups(channel_of, more, scheme, case)
    organs = tuple(name for name in scheme.names if name in groups)
    head = Head("sigmoid" if regions else "softmax", tuple(groups[organ] for organ in organs))
    return organs, head, outputs


def _label_id(value: object, name: str, case: str) -> int:
    while isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if not isinstance(value, int):
        raise InvalidInput(f"label {name!r} has no id", case=case, expected="a number", got=value)
    return value


def _groups(
    channel_of: Mapping[str, int],
    more: Mapping[str, tuple[str, ...]],
    scheme: OrganScheme,
    case: str,
) -> dict[str, tuple[int, ...]]:
    """Organ → the channels that mean it."""
    groups: dict[str, list[int]] = {}
    given_names = {label: scheme[organ].name for organ, names in more.items() for label in names}
    unknown = sorted(given_names.keys() - channel_of.keys())
    if unknown:
        raise InvalidInput(
            f"dataset.json has no label {unknown[0]!r}",
            case=case,
            expected=", ".join(channel_of),
            got=unknown[0],
        )
    for label, channel in channel_of.items():
        organ = given_names.get(label) or organ_called(label, scheme)
        if organ is not None:
            groups.setdefault(organ, []).append(channel)
    if not groups:
        raise InvalidInput(
            "no label of the dataset is an organ of ours",
            case=case,
            expected=f"one of {', '.join(scheme.names)}",
            got=", ".join(channel_of),
            remedy="say which label means which organ: --label liver=Leber",
        )
    return {organ: tuple(channels) for organ, channels in groups.items()}


def _require_one_ct(dataset: Mapping[str, Any], case: str) -> None:
    channels = dataset.get("channel_names") or dataset.get("modality") or {"0": "CT"}
    if len(channels) != 1:
        raise InvalidInput(
            "the network takes several image channels; a case has one CT",
            case=case,
            expected="one channel",
            got=channels,
        )


def _triple(values: Sequence[Any]) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z


def _int_triple(values: Sequence[Any]) -> tuple[int, int, int]:
    x, y, z = (int(value) for value in values)
    return x, y, z
