"""Records of the catalog: datasets, cases, labels with provenance, models, scores, iterations.

Plain frozen values; `atlas_core.catalog` stores and finds them.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from atlas_core.frozen_model import FrozenModel
from atlas_core.geometry import Affine, Shape3, VolumeGeometry
from atlas_core.model_spec import ModelRef, ModelSpec, Sha256
from atlas_core.organs import OrganName

CaseId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$")]
DatasetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")]


class Reading(StrEnum):
    """How soft predictions become attention."""

    PAPER = "paper"
    """Eq. 1–4 to the letter."""
    RELEASED = "released"
    """The authors' released code: thresholds and openings; size counts attended voxels."""
    OPENED = "opened"
    """Eq. 4 after an opening: without what is thinner than three voxels, as every organ's rim."""

    @property
    def counts_voxels(self) -> bool:
        """Whether thresholds are in the maps: a voxel above 0 is attended, and attention size is
        the number of such voxels. Else it is the sum of Eq. 4, and 0.2 makes a voxel attended."""
        return self is Reading.RELEASED


class LabelSource(StrEnum):
    """Where a label comes from, in falling priority (§3.2 ⑥)."""

    ORIGINAL = "original"
    REVISED = "revised"
    PSEUDO = "pseudo"


class Dataset(FrozenModel):
    """Where cases come from."""

    name: DatasetName
    title: str = ""
    licence: str = Field(default="", description="SPDX id, or the wording of the source.")
    url: str = ""
    organs: tuple[OrganName, ...] = Field(
        default=(), description="Organs that the original labels of this dataset cover."
    )
    preset: str | None = None


class Case(FrozenModel):
    """One CT volume."""

    id: CaseId
    dataset: DatasetName
    content_sha256: Sha256 = Field(description="Of geometry and voxels, not of the file's bytes.")
    shape: Shape3 = Field(description="Voxels along the file's own axes.")
    affine: Affine = Field(description="Voxel index of the file to RAS+ mm.")
    source: str = Field(
        default="", description="File name as imported, relative to what the user passed."
    )
    imported_at: datetime
    fingerprint: Sha256 | None = Field(
        default=None,
        description="Equal for copies of one scan in another axis order, with another header, or "
        "clipped. None: imported by a version that made none, or too plain to tell scans apart.",
    )

    @property
    def geometry(self) -> VolumeGeometry:
        return VolumeGeometry(self.shape, self.affine)


class UidRole(StrEnum):
    """What a DICOM UID has to do with a case."""

    OWN = "own"
    """Its series, or one of its slices."""
    SOURCE = "source"
    """What it was derived from: slices, or their frame of reference."""
    SHARED = "shared"
    """Its study and frame of reference, which series of one patient share."""


class Label(FrozenModel):
    """One organ of one case from one source. Immutable: a new label is a new row."""

    case_id: CaseId
    organ: OrganName
    source: LabelSource
    path: str = Field(description="File in the case store, relative to its root.")
    value: int = Field(ge=1, le=255, description="Voxel value that means this organ in that file.")
    sha256: Sha256 = Field(description="Of the file's bytes.")
    voxels: int = Field(ge=0)
    volume_ml: float = Field(ge=0)
    models: tuple[ModelRef, ...] = Field(default=(), description="Who predicted it (pseudo).")
    annotator: str | None = Field(default=None, description="Who revised it (revised).")
    created_at: datetime


class WarningKind(StrEnum):
    """What a warning of a case is about."""

    SCAN = "scan"
    """The CT: its header, values or slices."""
    TRUNCATED = "truncated"
    """An organ that the border of the scan cuts."""
    ORIENTATION = "orientation"
    """Sides, front and back, head and feet."""
    VOLUME = "volume"
    DENSITY = "density"
    """A label over air, or outside the field of view."""
    PIECES = "pieces"
    """A part of a label far from the rest."""
    OVERLAP = "overlap"


class CaseWarning(FrozenModel):
    """Something about a case that a person should look at; nothing is refused for it."""

    kind: WarningKind
    organ: OrganName | None = Field(default=None, description="None: the whole case.")
    text: str = Field(description="One clause, for people.")


class CheckedPart(StrEnum):
    """Part of a case that is checked by itself."""

    SCAN = "scan"
    LABELS = "labels"


class Model(FrozenModel):
    """One registered version of a model."""

    spec: ModelSpec
    parent: ModelRef | None = Field(default=None, description="The version it was fine-tuned from.")
    metrics: dict[str, float] = Field(default_factory=dict)
    provenance: dict[str, str] = Field(default_factory=dict)
    created_at: datetime


class OrganScore(FrozenModel):
    """Attention size of one organ of one case."""

    organ: OrganName
    attention_voxels: float = Field(ge=0, description="Sum over the stored attention map.")
    attention_ml: float = Field(ge=0)
    pseudo_label_ml: float = Field(ge=0)
    disagreement: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="1 − mean pairwise Dice of the models' masks (p > 0.5); of one model: 1 − the "
        "Dice that it expects. None: scored by a version that did not count it.",
    )
    expected_ml: float | None = Field(
        default=None, ge=0, description="Sum of the mean soft prediction; None as above."
    )
    voices: int | None = Field(
        default=None,
        ge=1,
        description="How many models of the ensemble know the organ: N of Eq. 1 and 2. None: of a "
        "version whose models all knew all organs.",
    )
    attended_ml: float | None = Field(
        default=None,
        ge=0,
        description="Volume of the voxels whose attention reaches 0.2 (in the reading `released`: "
        "is above 0). None: scored by a version that did not count it.",
    )


class Score(FrozenModel):
    """Result of scoring one case with one ensemble under one reading."""

    case_id: CaseId
    reading: Reading
    ensemble: str = Field(description="`model_spec.ensemble_key` of its models.")
    models: tuple[ModelRef, ...]
    organs: tuple[OrganScore, ...]
    number: int = Field(
        default=1, ge=1, description="Of the result in the case store that is in force."
    )
    seconds: float = Field(ge=0)
    created_at: datetime


class RankBy(StrEnum):
    """What the priority list is sorted by; see `ranking.rank`.

    Attributes:
        DISAGREEMENT: 1 − pairwise Dice of the models, averaged over organs: which labels are worst.
        SIZE: attention size, the paper's (§3.2 ④).
        ATTENDED: attention size with a floor, the volume of the voxels whose attention reaches 0.2:
            where most millilitres are wrong.
        RELATIVE: attention of an organ against the organ's own volume, averaged over organs.
    """

    DISAGREEMENT = "disagreement"
    SIZE = "size"
    ATTENDED = "attended"
    RELATIVE = "relative"


class RankedCase(FrozenModel):
    """One row of the priority list; rank 1 needs revision most."""

    rank: int = Field(ge=1)
    case_id: CaseId
    dataset: DatasetName
    attention_voxels: float
    attention_ml: float
    relative_attention: float = Field(
        description="Mean over the organs that count of attention / pseudo label, both in ml."
    )
    disagreement: float | None = Field(
        default=None,
        description="Mean over the organs that count and are not empty of 1 − the models' pairwise "
        "Dice; None where the score does not have it.",
    )
    attended_ml: float | None = Field(
        default=None, description="Summed over the organs that count; None as above."
    )
    organs: tuple[OrganScore, ...] = Field(
        description="Organs that count; those that drive the case's place come first."
    )
    left_out: tuple[OrganName, ...] = Field(
        default=(), description="Organs with an original label, left out of the size (§3.2 ⑥)."
    )

    def by(self, order: RankBy) -> float | None:
        """What a list in this order is sorted by; None where the score does not have it."""
        return {
            RankBy.DISAGREEMENT: self.disagreement,
            RankBy.SIZE: self.attention_ml,
            RankBy.ATTENDED: self.attended_ml,
            RankBy.RELATIVE: self.relative_attention,
        }[order]


class IterationState(StrEnum):
    OPEN = "open"
    DONE = "done"
    FAILED = "failed"


class Iteration(FrozenModel):
    """One turn of the loop."""

    t: int = Field(ge=0)
    state: IterationState = IterationState.OPEN
    parameters: dict[str, object] = Field(default_factory=dict)
    started_at: datetime
    finished_at: datetime | None = None
