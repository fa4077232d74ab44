"""Converts between messages and values; requests are checked before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from atlas_core.errors import InvalidInput, LimitExceeded
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import VoxelCoding
from atlas_core.model_spec import ModelRef, ModelSpec
from atlas_core.organs import OrganScheme
from atlas_core.records import Reading
from atlasloop.attention.v1 import attention_pb2 as pb
from google.protobuf.message import Message
from numpy.typing import NDArray

from atlas_attention.fusion import ATTENTION_SCALE
from atlas_attention.scoring import GridSlab, OrganSize, PredictionResult
from atlas_attention.triton import ServedEnsemble

RESPONSE_BYTES = (4 << 20) - (1 << 16)
"""Slabs are split to this size if a slice fits: gRPC clients refuse more than 4 MiB by default."""

MAX_TEXT = 256
"""Characters of a text in a request; case ids, organs and models have at most 128."""

MAX_ITEMS = 256
"""Of a list in a request: organs, labels, models."""

TO_READING = {reading: pb.Reading.Value(f"READING_{reading.name}") for reading in Reading}
_READINGS = {pb.READING_UNSPECIFIED: Reading.PAPER, **{v: k for k, v in TO_READING.items()}}

VOXEL_TYPES: dict[int, np.dtype[np.generic]] = {
    pb.VOXEL_TYPE_INT16: np.dtype("<i2"),
    pb.VOXEL_TYPE_INT32: np.dtype("<i4"),
    pb.VOXEL_TYPE_FLOAT32: np.dtype("<f4"),
    pb.VOXEL_TYPE_UINT8: np.dtype("u1"),
}


def require_bounded(message: Message) -> None:
    """Refuse a request with a longer text or list than any that means something.

    To be called before anything of it is logged, traced or quoted. Bytes are voxels, which the size
    of a message bounds.

    Raises:
        InvalidInput: names the field, never what it holds.
    """
    for field, value in message.ListFields():
        listed = value if field.is_repeated else (value,)
        if len(listed) > MAX_ITEMS:
            raise InvalidInput(
                f"too many {field.name}", expected=f"at most {MAX_ITEMS}", got=len(listed)
            )
        for item in listed:
            if isinstance(item, str) and len(item) > MAX_TEXT:
                raise InvalidInput(
                    f"{field.name} is too long",
                    expected=f"at most {MAX_TEXT} characters",
                    got=len(item),
                )
            if isinstance(item, Message):
                require_bounded(item)


def read_reading(value: pb.Reading.ValueType) -> Reading:
    """The reading asked for; unspecified means `paper`.

    Raises:
        InvalidInput: a number that this service does not know.
    """
    if value not in _READINGS:
        known = ", ".join(reading.name for reading in Reading)
        raise InvalidInput("unknown reading", expected=f"one of {known}", got=value)
    return _READINGS[value]


def read_geometry(grid: pb.VolumeGrid, max_voxels: int) -> VolumeGeometry:
    """Shape and affine (voxel index to RAS+ mm) of a volume.

    Raises:
        InvalidInput: not three axes, not sixteen numbers, or an impossible affine.
        LimitExceeded: too many voxels.
    """
    if len(grid.shape) != 3 or len(grid.affine) != 16:
        raise InvalidInput(
            "malformed grid",
            expected="3 numbers of voxels and 16 of an affine",
            got=f"{len(grid.shape)} and {len(grid.affine)}",
        )
    geometry = VolumeGeometry.from_array(
        tuple(grid.shape), np.array(grid.affine, np.float64).reshape(4, 4)
    )
    if geometry.voxels > max_voxels:
        raise LimitExceeded(
            "volume is too large",
            expected=f"at most {max_voxels} voxels",
            got=f"{'×'.join(str(n) for n in geometry.shape)} = {geometry.voxels}",
            remedy="crop it",
        )
    return geometry


def read_coding(header: pb.AttendVolumeHeader) -> VoxelCoding:
    """How stored voxels become Hounsfield units; a slope of 0 means 1.

    Raises:
        InvalidInput: an unknown voxel type, or slope and intercept that are not finite.
    """
    slope = header.slope or 1.0
    if not (math.isfinite(slope) and math.isfinite(header.intercept)):
        raise InvalidInput(
            "slope and intercept must be finite", got=f"{slope} and {header.intercept}"
        )
    return VoxelCoding(read_voxel_type(header.voxel_type), slope, header.intercept)


def read_voxel_type(value: pb.VoxelType.ValueType) -> np.dtype[np.generic]:
    """The NumPy type, little-endian.

    Raises:
        InvalidInput: unspecified, or a number that this service does not know.
    """
    if value not in VOXEL_TYPES:
        raise InvalidInput(
            "unknown voxel type", expected="INT16, INT32, FLOAT32 or UINT8", got=value
        )
    return VOXEL_TYPES[value]


def wanted_organs(asked: Sequence[str], known: tuple[str, ...]) -> tuple[str, ...]:
    """The attention channels asked for; all that the ensemble knows if none are named.

    Raises:
        InvalidInput: an organ asked for twice, or one that the ensemble does not predict.
    """
    twice = sorted({organ for organ in asked if list(asked).count(organ) > 1})
    unknown = [organ for organ in asked if organ not in known]
    if twice or unknown:
        raise InvalidInput(
            "organs asked for twice" if twice else "organs that these models do not predict",
            expected=f"some of {', '.join(known)}",
            got=", ".join(twice or unknown),
        )
    return tuple(asked) or known


def require_small_slices(
    geometry: VolumeGeometry, axis: int, organs: int, max_message_bytes: int
) -> None:
    """Refuse maps of which one slice along `axis` is larger than a message may be.

    Raises:
        LimitExceeded: one slice of the answer does not fit into a message.
    """
    plane = geometry.voxels // geometry.shape[axis]
    if (organs + 1) * plane > max_message_bytes:
        raise LimitExceeded(
            "a slice of the answer does not fit a message",
            expected=f"at most {max_message_bytes} bytes",
            got=f"{organs} organs and a label of {plane} voxels",
            remedy="ask for fewer organs",
        )


def grid_message(
    geometry: VolumeGeometry, organs: Sequence[str], labels: Sequence[int]
) -> pb.AttentionResponse:
    """The first message of an answer."""
    grid = pb.VolumeGrid(
        shape=geometry.shape,
        affine=geometry.matrix.ravel(),
        organs=organs,
        labels=labels,
        attention_scale=ATTENTION_SCALE,
    )
    return pb.AttentionResponse(grid=grid)


def slab_messages(slab: GridSlab, max_message_bytes: int) -> Iterator[pb.AttentionResponse]:
    """`slab` in messages of at most `RESPONSE_BYTES`, or of a single slice."""
    slices = slab.stop - slab.start
    per_slice = (slab.attention.size + slab.label.size) // slices
    step = max(1, min(RESPONSE_BYTES, max_message_bytes) // per_slice)
    for start in range(0, slices, step):
        stop = min(start + step, slices)
        within = (slice(None),) * slab.axis + (slice(start, stop),)
        yield pb.AttentionResponse(
            slab=pb.AttentionSlab(
                axis=slab.axis,
                start=slab.start + start,
                stop=slab.start + stop,
                attention=_first_axis_fastest(slab.attention[(slice(None), *within)]),
                pseudo_label=_first_axis_fastest(slab.label[within][None]),
            )
        )


def _first_axis_fastest(maps: NDArray[np.uint8]) -> bytes:
    """``[channel, i, j, k]`` as bytes, i fastest, channel slowest."""
    return maps.transpose(0, 3, 2, 1).tobytes()


def result_message(prediction: PredictionResult, *, already_scored: bool = False) -> pb.CaseResult:
    """The last message of an answer."""
    return pb.CaseResult(
        case_id=prediction.case_id,
        ensemble=prediction.ensemble,
        reading=TO_READING[prediction.reading],
        organs=[_organ_message(organ) for organ in prediction.organs],
        timing=pb.Timing(
            total_s=prediction.total_s,
            predict_s=prediction.predict_s,
            windows=prediction.windows,
            windows_air=prediction.windows_air,
        ),
        already_scored=already_scored,
        models=[_ref_message(ref) for ref in prediction.models],
        number=prediction.number,
        fusion_spacing_mm=prediction.fusion_spacing_mm or (),
        left_out=prediction.left_out,
    )


def _organ_message(organ: OrganSize) -> pb.OrganResult:
    return pb.OrganResult(
        organ=organ.organ,
        attention_voxels=organ.attention_voxels,
        attention_ml=organ.attention_ml,
        pseudo_label_ml=organ.pseudo_label_ml,
        pseudo_label_voxels=organ.pseudo_label_voxels,
        disagreement=organ.disagreement,
        expected_ml=organ.expected_ml,
        voices=organ.voices or 0,
        attended_ml=organ.attended_ml,
    )


def _ref_message(ref: ModelRef) -> pb.ModelRef:
    return pb.ModelRef(name=ref.name, version=ref.version, sha256=ref.sha256)


def model_message(spec: ModelSpec) -> pb.Model:
    """What a client is told of a model in service."""
    return pb.Model(
        name=spec.name,
        version=spec.version,
        sha256=spec.sha256,
        architecture=spec.architecture,
        organs=spec.organs,
        spacing_mm=spec.spacing_mm,
        patch=spec.patch,
    )


def ensemble_message(ensemble: ServedEnsemble) -> pb.Ensemble:
    """What a client is told of an ensemble."""
    locator = ensemble.locator
    return pb.Ensemble(
        name=ensemble.name,
        models=[_ref_message(spec.ref) for spec in ensemble.voices],
        fusion_spacing_mm=ensemble.fusion_spacing_mm or (),
        locator=None if locator is None else _ref_message(locator.ref),
        missing=ensemble.missing,
    )


def fusion_labels(
    organs: Sequence[str], labels: Sequence[int], scheme: OrganScheme
) -> tuple[int, ...]:
    """Label values for soft predictions that a client sends.

    Without `labels` they are those of `scheme` if it has all the organs, else 1, 2, 3, …

    Raises:
        InvalidInput: `labels` is neither empty nor one distinct value of 1..255 for each organ.
    """
    if not labels:
        if all(organ in scheme for organ in organs):
            return scheme.select(list(organs)).labels
        return tuple(range(1, len(organs) + 1))
    if len(labels) != len(organs) or len(set(labels)) != len(labels):
        raise InvalidInput(
            "labels do not go with the organs",
            expected=f"{len(organs)} distinct values, or none",
            got=list(labels),
        )
    if min(labels) < 1 or max(labels) > 255:
        raise InvalidInput("label value out of range", expected="1..255", got=list(labels))
    return tuple(labels)
