"""Record of an assembled case: its label map, and the provenance of each organ."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from atlas_core.assembly.post_processing import PostProcessing
from atlas_core.frozen_model import FrozenModel
from atlas_core.model_spec import ModelRef, Sha256
from atlas_core.organs import OrganName
from atlas_core.records import CaseId, LabelSource, Reading


class OrganProvenance(FrozenModel):
    """Where one organ of an assembled map comes from, and what was changed in it."""

    organ: OrganName
    source: LabelSource
    label_path: str = Field(description="The label's file, relative to the case store.")
    label_sha256: Sha256 = Field(description="Of that file.")
    models: tuple[ModelRef, ...] = Field(default=(), description="Who predicted it (pseudo).")
    author: str | None = Field(default=None, description="Who revised it (revised).")
    voxels: int = Field(ge=0, description="In the assembled map.")
    volume_ml: float = Field(ge=0, description="In the assembled map.")
    overlaps: int = Field(ge=0, description="Voxels lost to an organ of higher priority.")
    post_processing: PostProcessing | None = Field(
        default=None, description="What was applied to it; pseudo labels only."
    )
    removed_voxels: int = Field(default=0, ge=0, description="By the post-processing.")


class Assembly(FrozenModel):
    """One assembled label map of one case. Immutable: other inputs give another record."""

    case_id: CaseId
    path: str = Field(description="The label map, relative to the case store.")
    sha256: Sha256 = Field(description="Of the label map's file.")
    inputs_sha256: Sha256 = Field(description="Of all its inputs; names its folder.")
    reading: Reading | None = Field(default=None, description="Of the pseudo labels.")
    ensemble: str | None = Field(default=None, description="Who predicted them. None: not scored.")
    organs: tuple[OrganProvenance, ...] = Field(description="In the scheme's order.")
    missing: tuple[OrganName, ...] = Field(default=(), description="Organs without any label.")
    created_at: datetime

    @property
    def by_organ(self) -> dict[str, OrganProvenance]:
        return {found.organ: found for found in self.organs}
