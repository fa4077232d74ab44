"""What training and promotion left behind, as the loop records it."""

from __future__ import annotations

from atlas_core.frozen_model import FrozenModel
from pydantic import Field


class TrainingPlan(FrozenModel):
    """What is trained, by model: from which version, and which comes of it."""

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
