"""How a network is built and trained, as one typed value. Free of torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

import yaml
from atlas_core.errors import ConfigurationError
from atlas_core.geometry import Float3, Shape3
from atlas_core.model_spec import ModelName
from atlas_core.organs import ABDOMEN_ATLAS, OrganName
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Architecture = Literal["unet", "nnunet", "swin_unetr"]

SWIN_MULTIPLE = 32
"""Swin UNETR halves its input five times."""


class TrainingConfig(BaseModel):
    """Everything that a training run depends on besides its cases."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ModelName = Field(description="Name of the model in Triton.")
    architecture: Architecture
    channels: tuple[int, ...] = Field(
        min_length=1,
        description="Feature channels by resolution level, finest first; Swin UNETR: the first.",
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
    organs: tuple[OrganName, ...] = Field(
        default=ABDOMEN_ATLAS.names, min_length=1, description="Output channels, in order."
    )
    spacing_mm: Float3 = Field(
        default=(1.5, 1.5, 1.5), description="Grid the model works on, along x, y, z."
    )
    patch: Shape3 = Field(
        default=(96, 96, 96), description="Window along x, y, z in voxels of that grid."
    )
    hu_window: tuple[float, float] = Field(
        default=(-175.0, 250.0), description="Clipped to this and scaled to 0..1, inside the graph."
    )
    seed: int = Field(default=0, ge=0)
    steps: int = Field(ge=1, description="Optimiser steps.")
    batch_size: int = Field(default=1, ge=1)
    learning_rate: float = Field(gt=0, description="Peak of the one-cycle schedule.")
    weight_decay: float = Field(default=1e-4, ge=0)
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
    bf16: bool = Field(
        default=False, description="bfloat16 autocast: only where the CPU computes in it (AMX)."
    )

    @model_validator(mode="after")
    def _plausible(self) -> Self:
        halvings = self.stem_stride * 2 ** (len(self.channels) - 1)
        multiple = SWIN_MULTIPLE if self.architecture == "swin_unetr" else halvings
        if any(length % multiple for length in self.patch):
            raise ValueError(
                f"patch {self.patch}: {self.architecture} needs multiples of {multiple}"
            )
        if not self.hu_window[0] < self.hu_window[1]:
            raise ValueError(f"hu_window {self.hu_window}: expected lower < upper")
        return self


def read_config(path: Path) -> TrainingConfig:
    """The configuration in a YAML file.

    Raises:
        ConfigurationError: the file is missing or holds something else.
    """
    try:
        return TrainingConfig.model_validate(yaml.safe_load(path.read_text()))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise ConfigurationError(
            "unreadable training configuration", case=path.name, got=str(error)
        ) from error
