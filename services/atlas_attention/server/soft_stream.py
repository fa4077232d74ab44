"""Soft predictions that a client sends slab by slab: checked, rounded to bytes, fused, summed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from atlas_core.errors import InvalidInput, LimitExceeded
from atlas_core.geometry import VolumeGeometry
from atlas_core.organs import OrganName, OrganScheme
from atlas_core.records import Reading
from atlasloop.attention.v1 import attention_pb2 as pb
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from atlas_attention.fusion import (
    ATTENDED_FROM,
    ATTENTION_SCALE,
    Fused,
    disagreement,
    mean_probability_sum,
    open_fuser,
)
from atlas_attention.scoring import GridSlab, OrganSize
from atlas_attention.server.messages import (
    fusion_labels,
    read_geometry,
    read_reading,
    read_voxel_type,
)
from atlas_attention.settings import AttentionSettings

SLAB_AXIS = 2
"""Soft predictions come in slabs along the third axis, and so does their attention."""

PIECE_SLICES = 16
"""Slices fused at once; bounds the memory of fusing a message of many thin slices."""


@dataclass(frozen=True)
class SoftGrid:
    """The header of soft predictions, checked.

    Attributes:
        voxel_type: uint8 (p · 255) or float32 (p), little-endian.
    """

    geometry: VolumeGeometry
    models: int
    organs: tuple[str, ...]
    labels: tuple[int, ...]
    voxel_type: np.dtype[Any]
    reading: Reading

    @property
    def slice_bytes(self) -> int:
        """Bytes of one slice along k, all models and organs."""
        i, j, _ = self.geometry.shape
        return self.models * len(self.organs) * i * j * self.voxel_type.itemsize


def read_soft_grid(
    header: pb.FuseHeader, settings: AttentionSettings, scheme: OrganScheme
) -> SoftGrid:
    """Check the header before anything is allocated.

    Raises:
        InvalidInput: it breaks a rule.
        LimitExceeded: too many voxels, models, organs, or bytes in a slice.
    """
    organs = tuple(header.organs)
    for what, count, most in (
        ("models", header.models, settings.max_fuse_models),
        ("organs", len(organs), settings.max_fuse_organs),
    ):
        if count < 1:
            raise InvalidInput(f"soft predictions need {what}", expected="at least one", got=count)
        if count > most:
            raise LimitExceeded(f"too many {what} to fuse", expected=f"at most {most}", got=count)
    _require_organ_names(organs)
    voxel_type = read_voxel_type(header.voxel_type)
    if header.voxel_type not in (pb.VOXEL_TYPE_UINT8, pb.VOXEL_TYPE_FLOAT32):
        raise InvalidInput(
            "unknown type of soft predictions", expected="UINT8 or FLOAT32", got=voxel_type.name
        )
    grid = SoftGrid(
        read_geometry(header.grid, settings.max_voxels),
        header.models,
        organs,
        fusion_labels(organs, header.grid.labels, scheme),
        voxel_type,
        read_reading(header.reading),
    )
    if grid.slice_bytes > settings.max_message_bytes:
        raise LimitExceeded(
            "a slice of these soft predictions does not fit a message",
            expected=f"at most {settings.max_message_bytes} bytes",
            got=grid.slice_bytes,
            remedy="fuse fewer organs in one call",
        )
    return grid


def _require_organ_names(organs: tuple[str, ...]) -> None:
    try:
        TypeAdapter(tuple[OrganName, ...]).validate_python(organs)
    except ValidationError as error:
        raise InvalidInput("malformed organ name", got=error.errors()[0]["input"]) from None
    if len(set(organs)) != len(organs):
        raise InvalidInput("organs named twice", got=", ".join(organs))


class SoftFusion:
    """Fuses one volume of soft predictions as it arrives.

    Args:
        grid: the header.
        threads: of the kernels; None: one per available core.
    """

    def __init__(self, grid: SoftGrid, threads: int | None) -> None:
        self._grid = grid
        self._fuser = open_fuser(grid.reading, threads=threads)
        self._received = 0
        self._emitted = 0
        organs = len(grid.organs)
        self._attention_sum = np.zeros(organs, np.int64)
        self._attended = np.zeros(organs, np.int64)
        self._labelled = np.zeros(organs, np.int64)

    def push(self, request: pb.FuseSoftPredictionsRequest) -> Iterator[GridSlab]:
        """Slabs of attention that are certain once the slab in `request` has come.

        Raises:
            InvalidInput: the slab leaves a gap, overlaps, has a wrong size, or holds a number that
                is no probability.
        """
        if request.WhichOneof("part") != "slab":
            raise InvalidInput(
                "malformed upload",
                expected="slabs after the header",
                got=request.WhichOneof("part") or "an empty message",
            )
        return self._fuse(request.slab)

    def finish(self) -> Iterator[GridSlab]:
        """The last slabs of attention.

        Raises:
            InvalidInput: slices are missing.
        """
        slices = self._grid.geometry.shape[SLAB_AXIS]
        if self._received < slices:
            raise InvalidInput(
                "soft predictions end too early", expected=f"{slices} slices", got=self._received
            )
        return self._emit(self._fuser.finish())

    def sizes(self) -> tuple[OrganSize, ...]:
        """Attention size and pseudo label of every organ, once all slabs have been fused."""
        voxel_ml = self._grid.geometry.voxel_ml
        sizes = []
        disagreements = disagreement(self._fuser.counts, self._grid.models)
        expected = mean_probability_sum(self._fuser.counts, self._grid.models)
        for channel, (organ, label) in enumerate(
            zip(self._grid.organs, self._grid.labels, strict=True)
        ):
            attended = float(self._attended[channel])
            total = float(self._attention_sum[channel])
            voxels = attended if self._grid.reading.counts_voxels else total * ATTENTION_SCALE
            labelled = int(self._labelled[channel])
            sizes.append(
                OrganSize(
                    organ=organ,
                    label=label,
                    attention_voxels=voxels,
                    attention_ml=voxels * voxel_ml,
                    pseudo_label_voxels=labelled,
                    pseudo_label_ml=labelled * voxel_ml,
                    disagreement=float(disagreements[channel]),
                    expected_ml=float(expected[channel]) * voxel_ml,
                    voices=self._grid.models,
                    attended_ml=attended * voxel_ml,
                )
            )
        return tuple(sizes)

    def _fuse(self, slab: pb.SoftSlab) -> Iterator[GridSlab]:
        values = self._values(slab)
        for start in range(0, values.shape[2], PIECE_SLICES):
            piece = values[:, :, start : start + PIECE_SLICES]
            yield from self._emit(self._fuser.push(self._soft(piece, slab.start + start)))

    def _values(self, slab: pb.SoftSlab) -> NDArray[Any]:
        """The numbers of `slab`, ``[model, organ, k, j, i]``, in order and of the right size."""
        i, j, slices = self._grid.geometry.shape
        if slab.start != self._received or not slab.start < slab.stop <= slices:
            raise InvalidInput(
                "slab is out of order",
                expected=f"start {self._received}, stop up to {slices}",
                got=f"[{slab.start}, {slab.stop})",
            )
        expected = (slab.stop - slab.start) * self._grid.slice_bytes
        if len(slab.data) != expected:
            raise InvalidInput(
                f"slab [{slab.start}, {slab.stop}) has a wrong size",
                expected=f"{expected} bytes",
                got=len(slab.data),
            )
        self._received = slab.stop
        shape = (self._grid.models, len(self._grid.organs), slab.stop - slab.start, j, i)
        return np.frombuffer(slab.data, self._grid.voxel_type).reshape(shape)

    def _soft(self, values: NDArray[Any], first: int) -> NDArray[np.uint8]:
        """`values` as bytes round(255 · p).

        Args:
            first: index of their first slice, for messages.
        """
        if self._grid.voxel_type == np.uint8:
            return np.ascontiguousarray(values)
        soft = np.empty(values.shape, np.uint8)
        for model, organ in np.ndindex(values.shape[:2]):
            p = values[model, organ]
            # NaN is not within the bounds either.
            within = (p >= 0) & (p <= 1)
            if not within.all():
                k, j, i = (int(at[0]) for at in np.nonzero(~within))
                raise InvalidInput(
                    f"soft prediction of model {model}, {self._grid.organs[organ]}, voxel "
                    f"({i}, {j}, {first + k}) is no probability",
                    expected="0..1",
                    got=float(p[k, j, i]),
                )
            np.rint(p * np.float32(255), out=soft[model, organ], casting="unsafe")
        return soft

    def _emit(self, fused: Fused) -> Iterator[GridSlab]:
        if not fused.slices:
            return
        self._attention_sum += fused.attention.sum(axis=(1, 2, 3), dtype=np.int64)
        least = 1 if self._grid.reading.counts_voxels else ATTENDED_FROM
        self._attended += np.count_nonzero(fused.attention >= least, axis=(1, 2, 3))
        counts = np.bincount(fused.label.ravel(), minlength=len(self._grid.organs) + 1)
        self._labelled += counts[1:]
        values = np.array([0, *self._grid.labels], np.uint8)
        start, self._emitted = self._emitted, self._emitted + fused.slices
        yield GridSlab(
            axis=SLAB_AXIS,
            start=start,
            stop=self._emitted,
            attention=fused.attention.transpose(0, 3, 2, 1),
            label=values[fused.label].transpose(2, 1, 0),
        )
