"""Label versions as the API shows them."""

from __future__ import annotations

from datetime import datetime

from atlas_core.frozen_model import FrozenModel
from atlas_core.model_spec import ModelRef
from atlas_core.review import LabelVersion
from pydantic import ConfigDict, Field

from atlas_review.api.paths import API_PREFIX


class LabelView(FrozenModel):
    """One version of the label of one organ."""

    model_config = ConfigDict(extra="ignore")  # a response: its schema stays open

    id: str
    organ: str
    source: str
    author: str | None
    models: tuple[ModelRef, ...]
    created_at: datetime
    base: str | None = Field(description="Version that it was made from.")
    sha256: str
    voxels: int
    volume_ml: float
    value: int = Field(description="Voxel value of this organ in the file.")
    url: str
    in_force: bool


def label_view(version: LabelVersion) -> LabelView:
    """`version` with the address of its file."""
    return LabelView(
        **version.model_dump(exclude={"case_id", "path", "models"}),
        models=version.models,
        url=f"{API_PREFIX}/cases/{version.case_id}/labels/{version.id}.nii.gz?v={version.sha256}",
    )
