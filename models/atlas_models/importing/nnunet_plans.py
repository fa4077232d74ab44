"""One configuration of an nnU-Net's ``plans.json``, of nnU-Net 2.0 to 2.8, and its network.

Files are data here: classes are looked up in a short list, never imported by the name that a file
gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atlas_core.errors import ConfigurationError, CorruptFile, InvalidInput
from atlas_core.geometry import Float3, Shape3
from torch import nn

from atlas_models.exported_network import InputTransform

CT_NORMALISATION = "CTNormalization"
NO_NORMALISATION = "NoNormalization"

_WIDE_HU = (-32768.0, 32767.0)
"""Clips nothing of a CT: where a plan does not normalise."""

_OPPOSITE = {"L": "R", "P": "A", "I": "S"}

_NETWORKS_MODULE = "dynamic_network_architectures.architectures.unet"

TRAINED_AS = "atlas"
"""Name of the one configuration in plans for further training."""

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
    spacing_mm: Float3
    patch: Shape3
    input_transform: InputTransform
    architecture: str
    arguments: Mapping[str, Any]
    classes: tuple[str, ...]


def read_configuration(
    plans: Mapping[str, Any], name: str, orientation: str | None
) -> NnunetConfiguration:
    """One configuration of ``plans.json``.

    Args:
        orientation: of the training volumes; None: as the plans say, where they do.

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
                expected="a network that needs a CT only",
                got=f"previous_stage: {content['previous_stage']}",
                remedy="import the folder of 3d_fullres or 3d_lowres instead",
            )
        low, high, shift, scale = _intensities(plans, content, case)
        axes = _int_triple(plans["transpose_forward"])
        flipped = _flipped(_orientation(plans, orientation))
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


def _orientation(plans: Mapping[str, Any], given: str | None) -> str:
    """Towards where the axes (x, y, z) of the training volumes run."""
    if given is not None:
        return given.upper()
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


def _flipped(orientation: str) -> tuple[int, ...]:
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


def training_plans(
    plans: Mapping[str, Any], name: str, read: NnunetConfiguration
) -> dict[str, Any]:
    """Plans for further training by today's nnU-Net, of one configuration of older ones.

    Names that nnU-Net imports or makes folders of are ours; it looks the others up in itself.
    """
    content = _resolved(plans, name)
    function = "resample_data_or_seg_to_shape"
    cubic = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    usual = {
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "use_mask_for_norm": [False],
        "batch_dice": True,
        "median_image_size_in_voxels": content["patch_size"],
        "resampling_fn_data": function,
        "resampling_fn_seg": function,
        "resampling_fn_probabilities": function,
        "resampling_fn_data_kwargs": cubic,
        "resampling_fn_seg_kwargs": cubic | {"is_seg": True, "order": 1},
        "resampling_fn_probabilities_kwargs": cubic | {"order": 1},
    }
    network = {
        "network_class_name": f"{_NETWORKS_MODULE}.{read.architecture}",
        "arch_kwargs": dict(read.arguments),
        "_kw_requires_import": list(read.classes),
    }
    inherited = ("inherits_from", "previous_stage", "next_stage")
    configuration = usual | {key: value for key, value in content.items() if key not in inherited}
    properties = "foreground_intensity_properties_per_channel"
    axes = read.input_transform.axes
    return {
        "transpose_forward": list(axes),
        "transpose_backward": [axes.index(axis) for axis in range(3)],
        "original_median_spacing_after_transp": list(read.spacing_mm),
        "original_median_shape_after_transp": list(read.patch),
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "experiment_planner_used": "ExperimentPlanner",
        properties: plans.get(properties)
        or plans.get("foreground_intensity_properties_by_modality"),
        "dataset_name": "Dataset001_Atlas",
        "plans_name": "nnUNetPlans",
        "configurations": {
            TRAINED_AS: configuration | {"architecture": network, "data_identifier": "cases"}
        },
    }


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

    known = (unet.PlainConvUNet, unet.ResidualEncoderUNet, unet.ResidualUNet)
    networks = {one.__name__: one for one in known}
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


def _triple(values: Sequence[Any]) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z


def _int_triple(values: Sequence[Any]) -> tuple[int, int, int]:
    x, y, z = (int(value) for value in values)
    return x, y, z
