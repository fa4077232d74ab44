"""Attention maps → DICOM Parametric Map, on the slices that have any attention."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import highdicom
import numpy as np
from highdicom.pm import RealWorldValueMapping
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from atlas_core.dicom.instances import (
    dated,
    equipment,
    header_carried_over,
    identity_of,
    uid_of,
)
from atlas_core.dicom.source_series import SourceSeries
from atlas_core.errors import InvalidInput
from atlas_core.geometry import VolumeGeometry


def parametric_map(
    source: Sequence[Dataset],
    stored: NDArray[np.uint8],
    *,
    slope: float,
    geometry: VolumeGeometry,
    created_at: datetime,
    description: str = "Atlas Loop attention",
) -> Dataset:
    """A DICOM Parametric Map of attention.

    Args:
        source: headers of all slices of the CT series, in any order.
        stored: attention ``[i, j, k]`` as the case store has it.
        slope: attention is `stored` times this.
        geometry: grid of `stored`: the series' own, in any order of its axes.
        created_at: when it was computed.
        description: SeriesDescription; name the organ in it.

    Raises:
        InvalidInput: nothing is above 0.
        GridMismatch, UnsupportedVolume: as `segmentation`.
    """
    series = SourceSeries.of(source)
    frames = series.to_frames(stored, geometry, what="attention map")
    chosen = np.flatnonzero(frames.any(axis=(1, 2)))
    if not len(chosen):
        raise InvalidInput("there is no attention: nothing to write")
    frames = np.ascontiguousarray(frames[chosen], np.uint16)  # the standard allows no bytes
    highest = int(np.iinfo(stored.dtype).max)
    first = series.datasets[0]
    content = [slope, *chosen.tolist()]
    uid = uid_of("MAP", identity_of(first, description, created_at, content), frames)
    mapping = RealWorldValueMapping(
        lut_label="ATTENTION",
        lut_explanation="attention of an ensemble",
        unit=codes.UCUM.NoUnits,
        value_range=(0, highest),
        slope=slope,
        intercept=0.0,
    )
    with header_carried_over():
        made = highdicom.pm.ParametricMap(
            source_images=[series.datasets[index] for index in chosen],
            pixel_array=frames,
            series_instance_uid=uid_of(uid, "series"),
            sop_instance_uid=uid,
            series_description=description,
            content_label="ATTENTION",
            content_description=description,
            contains_recognizable_visual_features=False,
            real_world_value_mappings=[mapping],
            voi_lut_transformations=[
                highdicom.VOILUTTransformation(window_center=highest / 2, window_width=highest)
            ],
            transfer_syntax_uid=ExplicitVRLittleEndian,
            **equipment(),
        )
    made.Laterality = None  # a body has both sides
    return dated(made, created_at)
