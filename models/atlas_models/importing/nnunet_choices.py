"""What a user decides about the import of an nnU-Net."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from atlas_core.frozen_model import FrozenModel
from pydantic import Field

FINAL = "checkpoint_final.pth"
BEST = "checkpoint_best.pth"


class NnunetChoices(FrozenModel):
    """What a user decides about an import."""

    name: str = Field(description="Of the model in Triton.")
    version: int = Field(default=0, ge=0, description="t of M_t.")
    configuration: str | None = Field(
        default=None, description="Of the plans; None: the one that the checkpoint was trained as."
    )
    folds: tuple[str, ...] | Literal["all"] = Field(
        default="all", description="All that are trained (their logits averaged), or some by name."
    )
    checkpoint: str | None = Field(
        default=None, description="File in each fold's folder; None: the final, else the best one."
    )
    orientation: str | None = Field(
        default=None,
        description="Towards where the axes of the training volumes' files run: RAS, LPS, …; None: "
        "as the plans say, where they do.",
    )
    labels: Mapping[str, tuple[str, ...]] = Field(
        default={},
        description="Organ → names of the dataset's labels that mean it, beyond those we know.",
    )
    left_out: tuple[str, ...] = Field(
        default=(), description="Names of labels that take no part: no organ includes them."
    )
    preset: str | None = Field(
        default=None, description="A known dataset: its preset says what the label ids mean."
    )
    serving: Mapping[str, Any] = Field(
        default={}, description="Fields of the spec: how the model is served, e.g. its overlap."
    )
