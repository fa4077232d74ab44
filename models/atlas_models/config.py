"""How a network is built and trained, as one typed value. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from atlas_core.errors import ConfigurationError
from atlas_core.frozen_model import Fault, FrozenModel, first_fault
from atlas_core.geometry import Float3, Shape3
from atlas_core.model_spec import ModelName, Padding
from atlas_core.organs import OrganName, OrganScheme
from atlas_core.records import LabelSource
from pydantic import Field, ValidationError, model_validator

Architecture = Literal["unet", "nnunet", "swin_unetr", "segresnet", "unetr", "dynunet"]

OWN_ARCHITECTURES = ("unet", "nnunet", "swin_unetr", "segresnet", "unetr")
"""Those of `networks`; the others come from elsewhere."""

CONFIGS = Path(__file__).with_name("configs")
"""The configurations that ship: ``demo/NAME.yaml`` and ``paper/NAME.yaml``."""

_SET = "values of --set are YAML: --set steps=200, --set 'organs=[liver, spleen]'"

SWIN_MULTIPLE = 32
"""Swin UNETR halves its input five times."""

DYNUNET_LEVELS = 3
"""MONAI's DynUNet has at least these."""

UNETR_MULTIPLE = 16
"""UNETR cuts its input into cubes of 16 voxels."""


class LabelWeights(FrozenModel):
    """How much the labels of each source count in the loss; 0: not at all."""

    original: float = Field(default=1.0, ge=0)
    revised: float = Field(default=1.0, ge=0)
    pseudo: float = Field(default=0.5, ge=0, description="Nobody has looked at these.")

    def of(self, source: LabelSource) -> float:
        return {
            LabelSource.ORIGINAL: self.original,
            LabelSource.REVISED: self.revised,
            LabelSource.PSEUDO: self.pseudo,
        }[source]


class ForeignNetwork(FrozenModel):
    """A MONAI network from elsewhere: how it is built, what it expects, what its channels mean."""

    arguments: dict[str, Any] = Field(description="Of MONAI's class, beyond the channels.")
    outputs: int = Field(ge=1, description="Output channels.")
    activation: Literal["sigmoid", "softmax", "none"]
    channels: tuple[tuple[int, ...], ...] = Field(
        description="Of each organ, in order: channels that mean it."
    )
    shift: float = Field(description="Taken off the clipped HU.")
    scale: float = Field(gt=0, description="Divides after that.")
    axes: Shape3 = Field(description="The network's axis i is axis axes[i] of (z, y, x).")
    flipped: tuple[int, ...] = Field(description="Of (z, y, x), axes that ran against RAS+.")
    serving: dict[str, Any] = Field(
        default={}, description="Fields of the spec: how it is served, e.g. its overlap."
    )


class TrainingConfig(FrozenModel):
    """Everything that a training run depends on besides its cases."""

    # The network
    name: ModelName = Field(description="Name of the model in Triton.")
    architecture: Architecture
    foreign: ForeignNetwork | None = Field(
        default=None,
        description="The network came from elsewhere: this says how it is built.",
        exclude_if=lambda foreign: foreign is None,
    )
    channels: tuple[int, ...] = Field(
        default=(),
        description="Feature channels by resolution level, finest first; Swin UNETR, UNETR and "
        "SegResNet double the first by themselves.",
    )
    residual_units: int = Field(
        default=1, ge=0, description="U-Net: convolutions of a residual unit; 0: plain ones."
    )
    stem_stride: Literal[1, 2] = Field(
        default=1,
        description="nnU-Net: stride of the first convolution. 2: the trunk works at half the "
        "resolution, where it can be three times as wide for half the time.",
    )
    bottleneck_block: bool = Field(
        default=True,
        description="Swin UNETR's convolutions at the coarsest level: half of all its weights.",
    )
    depths: tuple[int, ...] = Field(
        default=(2, 2, 1, 1),
        min_length=1,
        description="Blocks by level: Swin UNETR's transformer stages, SegResNet's encoder.",
    )
    heads: tuple[int, ...] = Field(
        default=(2, 4, 4, 4),
        min_length=1,
        description="Attention heads: by stage of Swin UNETR; UNETR: the first.",
    )
    attention_window: int = Field(default=4, ge=2, description="Swin UNETR: side in tokens.")
    hidden: int = Field(default=96, ge=1, description="UNETR: width of its transformer.")
    organs: tuple[OrganName, ...] = Field(
        default=(), description="Output channels, in order; empty: all organs of the atlas."
    )
    activation: Literal["sigmoid", "softmax"] = Field(
        default="sigmoid",
        description="sigmoid: organs are independent; softmax: they and the background share 1.",
    )

    # The grid
    spacing_mm: Float3 = Field(
        default=(1.5, 1.5, 1.5), description="Grid the model works on, along x, y, z."
    )
    patch: Shape3 = Field(
        default=(96, 96, 96), description="Window along x, y, z in voxels of that grid."
    )
    padding_hu: Padding | None = Field(
        default=None,
        description="Beyond a CT that does not fill the window, in training and serving; edge: as "
        "its nearest voxel; none: air.",
        exclude_if=lambda padding_hu: padding_hu is None,
    )
    hu_window: tuple[float, float] = Field(
        default=(-175.0, 250.0), description="Clipped to this and scaled to 0..1, inside the graph."
    )

    # The run
    seed: int = Field(default=0, ge=0)
    steps: int = Field(ge=1, description="Optimiser steps, at most.")
    batch_size: int = Field(default=1, ge=1, description="Patches per step and process.")
    optimiser: Literal["adamw", "adam", "sgd"] = Field(
        default="adamw", description="sgd: momentum 0.99 after Nesterov, as nnU-Net."
    )
    learning_rate: float = Field(gt=0, description="Its peak, or where it starts.")
    weight_decay: float = Field(default=1e-4, ge=0)
    schedule: Literal["one_cycle", "poly", "plateau", "constant"] = Field(
        default="one_cycle",
        description="poly: (1 - step / steps)^0.9, as nnU-Net; plateau: halved when the loss has "
        "not fallen for `patience` / 2 validations.",
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32",
        description="Mixed precision of the forward pass. bfloat16 on a CPU only where it computes "
        "in it (AMX, AVX512-BF16): elsewhere it is emulated, many times slower.",
    )
    augmentation: Literal["intensity", "full"] = Field(
        default="intensity",
        description="intensity: gain, offset and noise; full: also turned, scaled and blurred.",
    )
    foreground_share: float = Field(
        default=0.0, ge=0, le=1, description="Of the patches, those about a voxel of some organ."
    )
    short_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Of the patches, those that show a run of their slices, as a short scan would.",
        exclude_if=lambda share: share == 0,
    )
    validate_every: int = Field(default=100, ge=1, description="Steps between validations.")
    patience: int = Field(
        default=0, ge=0, description="Validations without a better Dice before it stops; 0: never."
    )

    # The loss
    label_weights: LabelWeights = LabelWeights()
    output_bias: float = Field(
        default=-2.5,
        description="Where the output starts (logit): organs are rare; no step is spent on that.",
    )
    positive_weight_cap: float = Field(
        default=30.0, ge=1, description="Most that voxels of a rare organ count more in the BCE."
    )
    emphasis_floor: float = Field(
        default=0.15,
        ge=0,
        le=1,
        description="Exponent that the positive weights keep to the end; 0 leaves small organs "
        "a fifth too small.",
    )

    def of_atlas(self, scheme: OrganScheme) -> TrainingConfig:
        """The same for an atlas with the organs of `scheme`: all of them where none are named.

        Raises:
            UnknownLabel: an organ that the atlas does not have.
        """
        organs = tuple(scheme[name].name for name in self.organs) or scheme.names
        return self.model_copy(update={"organs": organs})

    @model_validator(mode="after")
    def _plausible(self) -> Self:
        if self.foreign is None:
            self._require_own_network()
        if not self.hu_window[0] < self.hu_window[1]:
            raise ValueError(f"hu_window {self.hu_window}: expected lower < upper")
        if len(set(self.organs)) != len(self.organs):
            raise ValueError(f"organs named twice: {self.organs}")
        if min(self.spacing_mm) <= 0:
            raise ValueError(f"spacing_mm {self.spacing_mm}: expected positive lengths")
        return self

    def _require_own_network(self) -> None:
        """Raises ValueError if none of our networks can be built so."""
        if not self.channels:
            raise ValueError("channels: expected at least one level")
        if self.architecture not in OWN_ARCHITECTURES:
            raise ValueError(f"architecture {self.architecture}: MONAI's, for imports only")
        multiple = self._patch_multiple()
        if any(length < multiple or length % multiple for length in self.patch):
            raise ValueError(
                f"patch {self.patch}: {self.architecture} needs multiples of {multiple}"
            )
        if self.architecture == "nnunet" and len(self.channels) < DYNUNET_LEVELS:
            raise ValueError(f"channels {self.channels}: nnunet needs {DYNUNET_LEVELS} levels")
        if self.architecture == "unetr" and self.hidden % self.heads[0]:
            raise ValueError(f"hidden {self.hidden}: expected a multiple of {self.heads[0]} heads")
        if self.architecture == "swin_unetr" and not len(self.depths) == len(self.heads) == 4:
            raise ValueError("Swin UNETR has four stages: depths and heads need four numbers each")

    def _patch_multiple(self) -> int:
        """What every side of the patch must be a multiple of, for this network to halve it."""
        match self.architecture:
            case "swin_unetr":
                return SWIN_MULTIPLE
            case "unetr":
                return UNETR_MULTIPLE
            case "segresnet":
                return int(2 ** (len(self.depths) - 1))
            case _:
                return int(self.stem_stride * 2 ** (len(self.channels) - 1))


def read_config(
    source: Path | str, overrides: Mapping[str, object] | None = None
) -> TrainingConfig:
    """The configuration in a YAML file, or one that ships (``"demo/unet"``, ``"paper/nnunet"``).

    Args:
        overrides: fields that replace those of the file.

    Raises:
        ConfigurationError: the file is missing or holds something else, or a field cannot be.
    """
    path = _path(source)
    try:
        fields = yaml.safe_load(path.read_text())
        if not isinstance(fields, dict):
            raise ConfigurationError(
                "unreadable training configuration",
                case=path.name,
                expected="fields with values",
                got=type(fields).__name__,
            )
        return TrainingConfig.model_validate({**fields, **(overrides or {})})
    except ValidationError as error:
        raise _refusal(first_fault(error), path.name, overrides or {}) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        got = " ".join(str(error).split())[:200]
        raise ConfigurationError(
            "unreadable training configuration", case=path.name, got=got
        ) from None


def read_override(text: str) -> tuple[str, Any]:
    """``steps=200``, as `--set` takes it: a field and its value, which is read as YAML.

    Raises:
        ConfigurationError: the text has another form.
    """
    name, equals, value = text.partition("=")
    try:
        if name.strip() and equals:
            return name.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        pass
    raise ConfigurationError(
        "malformed setting", expected="FIELD=VALUE, the value as YAML", got=text, remedy=_SET
    )


def _refusal(fault: Fault, file: str, overrides: Mapping[str, object]) -> ConfigurationError:
    unknown = len(fault.place) == 1 and fault.place[0] not in TrainingConfig.model_fields
    return ConfigurationError(
        f"the training configuration has no field {fault.where}"
        if unknown
        else f"the training configuration cannot work: {fault.where}",
        case=file,
        expected=f"one of {', '.join(TrainingConfig.model_fields)}" if unknown else fault.expected,
        got=fault.got,
        remedy=_SET if not unknown and overrides.keys() & set(fault.place[:1]) else None,
    )


def shipped_configs() -> tuple[str, ...]:
    """Names of the configurations that ship, sorted."""
    return tuple(sorted(f"{p.parent.name}/{p.stem}" for p in CONFIGS.glob("*/*.yaml")))


def _path(source: Path | str) -> Path:
    if isinstance(source, str) and source in shipped_configs():
        return CONFIGS / f"{source}.yaml"
    path = Path(source)
    if not path.is_file():
        raise ConfigurationError(
            "no such training configuration",
            case=str(source),
            expected=f"a YAML file, or one of {', '.join(shipped_configs())}",
        )
    return path
