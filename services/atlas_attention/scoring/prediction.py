"""The result of one run, and how the case store holds it.

``result.json`` beside the maps holds a `PredictionResult`, so that the numbers of a case can be
verified from its files alone.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from atlas_core.errors import CorruptFile
from atlas_core.frozen_model import FrozenModel
from atlas_core.geometry import Float3
from atlas_core.model_spec import ModelRef, ModelSpec, Sha256, ensemble_key
from atlas_core.records import OrganScore, Reading
from pydantic import Field, ValidationError

from atlas_attention.fusion import ATTENTION_SCALE
from atlas_attention.scoring.pipeline import AttentionSummary


class OrganSize(OrganScore):
    """Attention size and pseudo label of one organ."""

    label: int = Field(ge=1, le=255, description="Its value in the pseudo label.")
    pseudo_label_voxels: int = Field(ge=0)
    attention_sha256: Sha256 | None = Field(
        default=None,
        description="Of the file of its attention map, if it was written: a map of zeros has none.",
    )


class PredictionResult(FrozenModel):
    """What an ensemble predicts for one CT under one reading."""

    case_id: str = Field(default="", description="Empty for a volume that is not in the store.")
    reading: Reading
    ensemble: str = Field(default="", description="`model_spec.ensemble_key` of its models.")
    models: tuple[ModelRef, ...] = ()
    organs: tuple[OrganSize, ...]
    attention_scale: float = Field(
        default=ATTENTION_SCALE, description="Attention = byte · attention_scale."
    )
    overlap: float | None = Field(default=None, description="Of neighbouring windows, per axis.")
    fusion_spacing_mm: Float3 | None = Field(
        default=None,
        description="Of the grid where the models met, along canonical x, y, z. None: of a version "
        "that knew no other than the models' own, or no model was run.",
    )
    windows: int = Field(default=0, ge=0, description="Predicted, of all models together.")
    windows_air: int = Field(default=0, ge=0, description="Left out: nothing but air.")
    left_out: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of the body's box without windows, since locating ruled organs out.",
    )
    total_s: float = Field(default=0.0, ge=0)
    predict_s: float = Field(default=0.0, ge=0, description="Waiting for the models.")
    pseudo_label_sha256: Sha256 | None = None
    member_labels: dict[str, Sha256] = Field(
        default_factory=dict,
        description="Model → checksum of the file of what it labels by itself; those that label "
        "nothing, or were not asked for, have none.",
    )
    number: int = Field(default=1, ge=0, description="Of the results in the store; 0: not stored.")
    service_version: str = ""
    created_at: datetime

    @classmethod
    def of_run(
        cls,
        summary: AttentionSummary,
        specs: tuple[ModelSpec, ...],
        reading: Reading,
        *,
        labels: tuple[int, ...],
        voxel_ml: float,
        overlap: float,
        total_s: float,
        service_version: str,
        ensemble: str | None = None,
    ) -> PredictionResult:
        """The result of a run of `specs`.

        Args:
            labels: label value of each organ of `summary`.
            voxel_ml: volume of one voxel of the CT.
            overlap: of neighbouring windows, as a share of the patch.
            total_s: of the whole run, in seconds.
            ensemble: key of models and fusion grid; None: that of the models alone.
        """
        refs = tuple(sorted((spec.ref for spec in specs), key=str))
        return cls(
            reading=reading,
            ensemble=ensemble or ensemble_key(refs),
            models=refs,
            organs=tuple(
                OrganSize(
                    **score.model_dump(),
                    label=label,
                    pseudo_label_voxels=round(score.pseudo_label_ml / voxel_ml),
                )
                for score, label in zip(summary.organs, labels, strict=True)
            ),
            overlap=overlap,
            fusion_spacing_mm=summary.fusion_spacing_mm,
            windows=summary.windows,
            windows_air=summary.windows_air,
            left_out=summary.left_out,
            total_s=total_s,
            predict_s=summary.predict_s,
            number=0,
            service_version=service_version,
            created_at=datetime.now(UTC),
        )

    def stored(
        self,
        case_id: str,
        number: int,
        attention_sha256: dict[str, str],
        pseudo_label_sha256: str,
        member_labels: dict[str, str],
    ) -> PredictionResult:
        """The same for a case of the store, with the checksums of its files.

        Args:
            attention_sha256: by organ, of those that have a file.
            member_labels: by model, of those that have a file.
        """
        return self.model_copy(
            update={
                "case_id": case_id,
                "number": number,
                "pseudo_label_sha256": pseudo_label_sha256,
                "member_labels": member_labels,
                "organs": tuple(
                    organ.model_copy(update={"attention_sha256": attention_sha256.get(organ.organ)})
                    for organ in self.organs
                ),
            }
        )


def read_prediction(path: Path, case_id: str) -> PredictionResult | None:
    """The result in ``result.json`` at `path`; None if there is no such file.

    Raises:
        CorruptFile: the file is not what this service writes.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return PredictionResult.model_validate_json(text)
    except ValidationError as error:
        raise CorruptFile(
            "the stored result cannot be read",
            case=case_id,
            got=error.errors()[0]["msg"],
            remedy="delete this prediction and score the case again",
        ) from None
