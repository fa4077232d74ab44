"""The results of training and promotion, as the loop records them."""

from __future__ import annotations

from typing import Final

from atlas_core.frozen_model import FrozenModel
from pydantic import Field

REFUSED: Final = "TrainingRefused"
"""Name of the state of a run whose training diverged; the message says how."""


class TrainingPlan(FrozenModel):
    """The trainings of an iteration, by model: from which version, and to which."""

    parents: dict[str, int]
    versions: dict[str, int]


class Trained(FrozenModel):
    """A new version, or why there is none."""

    version: int
    refused: str = ""


class Promoted(FrozenModel):
    """A new version in service, or why the old one stays."""

    version: int
    before: int | None = None
    refused: str = ""
    evidence: dict[str, float] = Field(default_factory=dict)
