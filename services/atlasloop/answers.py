"""What the attention service answers, as plain values; read from messages only here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from atlasloop.attention.v1 import attention_pb2 as pb

Reading = Literal["paper", "released", "opened"]
"""How soft predictions become attention: Eq. 1–4 to the letter, the authors' released code, or
Eq. 4 after an opening, without the thin rim of every organ."""

READINGS: Final[Mapping[Reading, pb.Reading.ValueType]] = {
    "paper": pb.READING_PAPER,
    "released": pb.READING_RELEASED,
    "opened": pb.READING_OPENED,
}


@dataclass(frozen=True)
class ModelInfo:
    """One version of a model that the service has loaded.

    Attributes:
        version: t of M_t.
        sha256: of the exported graph.
        organs: output channels, in order.
        spacing_mm: of the grid the model works on, along x, y, z.
        patch: window along x, y, z in voxels of that grid.
    """

    name: str
    version: int
    sha256: str
    architecture: str
    organs: tuple[str, ...]
    spacing_mm: tuple[float, ...]
    patch: tuple[int, ...]


@dataclass(frozen=True)
class Limits:
    """Limits of one call, and of calls at once."""

    max_voxels: int
    max_message_bytes: int
    max_fuse_models: int
    max_fuse_organs: int
    max_calls: int
    idle_timeout_s: int


@dataclass(frozen=True)
class ModelRef:
    """Which model predicted: its name, version t, and the SHA-256 of its exported graph."""

    name: str
    version: int
    sha256: str


@dataclass(frozen=True)
class EnsembleInfo:
    """Models that work together under a name, as the service has them loaded.

    Attributes:
        models: whose predictions are fused, each in its version in service.
        fusion_spacing_mm: of the grid of the fusion along x, y, z; None: the finest of theirs.
        locator: finds where organs can be; None: none does.
        missing: members that the model server does not hold: the ensemble cannot answer.
    """

    name: str
    models: tuple[ModelRef, ...]
    fusion_spacing_mm: tuple[float, float, float] | None = None
    locator: ModelRef | None = None
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class ServiceInfo:
    """The ensembles that are loaded, their organs, and the limits.

    Attributes:
        models: of the ensemble in use, each in its version in service.
        older_models: other versions that are loaded, older or newer than the one in service; used
            when asked for as ``"name@t"``.
        labels: label value of each organ.
        ensembles: all that are loaded, by name.
        ensemble_in_use: the one that answers when none is named; empty in a service of before.
        organ_scheme: name of the organ scheme that the service is configured for.
        organ_scheme_sha256: of its ids and names.
    """

    service_version: str
    models: tuple[ModelInfo, ...]
    older_models: tuple[ModelInfo, ...]
    organs: tuple[str, ...]
    labels: tuple[int, ...]
    readings: tuple[Reading, ...]
    limits: Limits
    attention_scale: float
    ensembles: tuple[EnsembleInfo, ...] = ()
    ensemble_in_use: str = ""
    organ_scheme: str = ""
    organ_scheme_sha256: str = ""


@dataclass(frozen=True)
class OrganResult:
    """Attention size and pseudo label of one organ.

    Attributes:
        attention_voxels: sum of the attention map over the CT's grid (reading ``paper``), or number
            of attended voxels (``released``).
        attention_ml: the same times the volume of a voxel.
        disagreement: 1 − mean pairwise Dice of the models' masks (p > 0.5), 0..1; of one model 1 −
            the Dice that it expects; None in results that an older version stored.
        expected_ml: sum of the mean soft prediction in ml; None as above.
        voices: how many models know the organ; one alone cannot be inconsistent. None as above.
        attended_ml: volume of the voxels whose attention reaches 0.2 (``released``: is above 0);
            None as above.
    """

    organ: str
    attention_voxels: float
    attention_ml: float
    pseudo_label_voxels: int
    pseudo_label_ml: float
    disagreement: float | None = None
    expected_ml: float | None = None
    voices: int | None = None
    attended_ml: float | None = None


@dataclass(frozen=True)
class Timing:
    """Where the time of a call went; `windows` and `windows_air` count all models together."""

    total_s: float
    predict_s: float
    windows: int
    windows_air: int


@dataclass(frozen=True)
class CaseResult:
    """Result of one call.

    Attributes:
        case_id: empty for a client's own volume.
        ensemble: key of models and versions; the name of the predictions' folder in the store.
        models: which models predicted; empty if the client sent the predictions.
        already_scored: nothing was predicted, the store held the result.
        number: of the results of this case, ensemble and reading in the store, from 1; 0: it is not
            stored.
        fusion_spacing_mm: of the grid where the models' predictions met, along the patient's x, y,
            z (RAS+); empty: a result that an older version stored, or of soft predictions sent.
        left_out: share of the body's box that was left out, since locating ruled organs out there.
    """

    case_id: str
    ensemble: str
    reading: Reading
    models: tuple[ModelRef, ...]
    organs: tuple[OrganResult, ...]
    timing: Timing
    already_scored: bool
    number: int
    fusion_spacing_mm: tuple[float, ...] = ()
    left_out: float = 0.0


@dataclass(frozen=True)
class Grid:
    """Grid and channels of the answer.

    Attributes:
        shape: voxels along i, j, k.
        affine: ``[4, 4]``, voxel index to RAS+ millimetres.
        organs: attention channels, in order.
        labels: label value of each organ.
        attention_scale: attention = byte · attention_scale.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    organs: tuple[str, ...]
    labels: tuple[int, ...]
    attention_scale: float


@dataclass(frozen=True)
class AttentionSlab:
    """Indices ``[start, stop)`` along `axis` of the maps, all of the other axes.

    Attributes:
        axis: 0 = i, 1 = j, 2 = k.
        attention: uint8 ``[organ, i, j, k]``.
        label: uint8 ``[i, j, k]``; 0 is background.
    """

    axis: int
    start: int
    stop: int
    attention: NDArray[np.uint8]
    label: NDArray[np.uint8]


@dataclass(frozen=True)
class AttentionMaps:
    """Attention maps and pseudo label of a whole volume.

    Attributes:
        attention: uint8 ``[organ, i, j, k]``.
        label: uint8 ``[i, j, k]``; 0 is background.
    """

    grid: Grid
    attention: NDArray[np.uint8]
    label: NDArray[np.uint8]
    result: CaseResult

    def attention_of(self, organ: str) -> NDArray[np.float32]:
        """Attention of `organ` in real units, float32 ``[i, j, k]``.

        Raises:
            KeyError: no channel of that name was requested.
        """
        if organ not in self.grid.organs:
            raise KeyError(f"no attention for {organ!r}; there is {', '.join(self.grid.organs)}")
        scale = np.float32(self.grid.attention_scale)
        real: NDArray[np.float32] = self.attention[self.grid.organs.index(organ)] * scale
        return real


def _reading(value: pb.Reading.ValueType) -> Reading:
    """`paper` also for one that this client does not know yet: the maps mean the same."""
    return next((name for name, known in READINGS.items() if known == value), "paper")


def _model_info(model: pb.Model) -> ModelInfo:
    return ModelInfo(
        name=model.name,
        version=model.version,
        sha256=model.sha256,
        architecture=model.architecture,
        organs=tuple(model.organs),
        spacing_mm=tuple(model.spacing_mm),
        patch=tuple(model.patch),
    )


def service_info(reply: pb.GetInfoResponse) -> ServiceInfo:
    limits = reply.limits
    return ServiceInfo(
        service_version=reply.service_version,
        models=tuple(_model_info(model) for model in reply.models),
        older_models=tuple(_model_info(model) for model in reply.older_models),
        organs=tuple(reply.organs),
        labels=tuple(reply.labels),
        readings=tuple(_reading(reading) for reading in reply.readings),
        limits=Limits(
            max_voxels=limits.max_voxels,
            max_message_bytes=limits.max_message_bytes,
            max_fuse_models=limits.max_fuse_models,
            max_fuse_organs=limits.max_fuse_organs,
            max_calls=limits.max_calls,
            idle_timeout_s=limits.idle_timeout_s,
        ),
        attention_scale=reply.attention_scale,
        ensembles=tuple(_ensemble_info(ensemble) for ensemble in reply.ensembles),
        ensemble_in_use=reply.ensemble_in_use,
        organ_scheme=reply.organ_scheme,
        organ_scheme_sha256=reply.organ_scheme_sha256,
    )


def _ensemble_info(ensemble: pb.Ensemble) -> EnsembleInfo:
    spacing = ensemble.fusion_spacing_mm
    return EnsembleInfo(
        name=ensemble.name,
        models=tuple(_model_ref(model) for model in ensemble.models),
        fusion_spacing_mm=(spacing[0], spacing[1], spacing[2]) if len(spacing) == 3 else None,
        locator=_model_ref(ensemble.locator) if ensemble.HasField("locator") else None,
        missing=tuple(ensemble.missing),
    )


def _model_ref(model: pb.ModelRef) -> ModelRef:
    return ModelRef(model.name, model.version, model.sha256)


def read_grid(grid: pb.VolumeGrid) -> Grid:
    i, j, k = grid.shape
    return Grid(
        shape=(i, j, k),
        affine=np.array(grid.affine, np.float64).reshape(4, 4),
        organs=tuple(grid.organs),
        labels=tuple(grid.labels),
        attention_scale=grid.attention_scale,
    )


def attention_slab(slab: pb.AttentionSlab, grid: Grid) -> AttentionSlab:
    shape = list(grid.shape)
    shape[slab.axis] = slab.stop - slab.start
    i, j, k = shape
    attention = np.frombuffer(slab.attention, np.uint8).reshape(len(grid.organs), k, j, i)
    label = np.frombuffer(slab.pseudo_label, np.uint8).reshape(k, j, i)
    return AttentionSlab(
        slab.axis, slab.start, slab.stop, attention.transpose(0, 3, 2, 1), label.transpose(2, 1, 0)
    )


def case_result(result: pb.CaseResult) -> CaseResult:
    return CaseResult(
        case_id=result.case_id,
        ensemble=result.ensemble,
        reading=_reading(result.reading),
        models=tuple(_model_ref(model) for model in result.models),
        organs=tuple(
            OrganResult(
                organ=organ.organ,
                attention_voxels=organ.attention_voxels,
                attention_ml=organ.attention_ml,
                pseudo_label_voxels=organ.pseudo_label_voxels,
                pseudo_label_ml=organ.pseudo_label_ml,
                disagreement=organ.disagreement if organ.HasField("disagreement") else None,
                expected_ml=organ.expected_ml if organ.HasField("expected_ml") else None,
                voices=organ.voices or None,
                attended_ml=organ.attended_ml if organ.HasField("attended_ml") else None,
            )
            for organ in result.organs
        ),
        timing=Timing(
            total_s=result.timing.total_s,
            predict_s=result.timing.predict_s,
            windows=result.timing.windows,
            windows_air=result.timing.windows_air,
        ),
        already_scored=result.already_scored,
        number=result.number,
        fusion_spacing_mm=tuple(result.fusion_spacing_mm),
        left_out=result.left_out,
    )
