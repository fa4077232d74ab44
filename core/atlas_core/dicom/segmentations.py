"""Labels → DICOM Segmentation: one binary segment an organ, on the slices of the source series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from typing import Any, Final

import highdicom
import numpy as np
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from atlas_core.dicom.codes import CATEGORY, concept_of
from atlas_core.dicom.instances import dated, equipment, header_carried_over, identity_of, uid_of
from atlas_core.dicom.source_series import SourceSeries
from atlas_core.errors import InvalidInput, UnknownLabel
from atlas_core.geometry import VolumeGeometry
from atlas_core.organs import BACKGROUND, Organ, OrganScheme
from atlas_core.records import LabelSource

Labels = NDArray[Any] | Mapping[str, NDArray[Any]]
Origin = LabelSource | Mapping[str, LabelSource]

ALGORITHM_TYPE: Final = {
    LabelSource.PSEUDO: SegmentAlgorithmTypeValues.AUTOMATIC,
    LabelSource.REVISED: SegmentAlgorithmTypeValues.SEMIAUTOMATIC,
    LabelSource.ORIGINAL: SegmentAlgorithmTypeValues.MANUAL,
}
"""A revised label began as a model's; an original one is somebody's reference."""


def segmentation(
    source: Sequence[Dataset],
    labels: Labels,
    organs: OrganScheme,
    *,
    geometry: VolumeGeometry,
    origin: Origin,
    created_at: datetime,
    algorithm: str = "Atlas Loop ensemble",
    description: str = "Atlas Loop labels",
) -> Dataset:
    """A DICOM SEG (BINARY, frames without a voxel left out) of `labels`.

    Args:
        source: headers of all slices of the CT series, in any order.
        labels: a label map ``[i, j, k]`` with the label ids of `organs`, or a mask an organ (which
            may overlap).
        organs: what the ids or names mean; codes and colours.
        geometry: grid of `labels`: the series' own, in any order of its axes.
        origin: where the labels come from, one for all or one for each organ.
        created_at: when the labels were made.
        algorithm: name of what made them: of the ensemble, of the atlas.
        description: SeriesDescription.

    Returns:
        Segments in the order of `organs`, of those that have a voxel.

    Raises:
        InvalidInput: no voxel is labelled.
        UnknownLabel: a value or name that `organs` lacks.
        GridMismatch: `geometry` is not the grid of the series.
        UnsupportedVolume: the series is none; see `SourceSeries.of`.
    """
    series = SourceSeries.of(source)
    present, frames = segment_frames(series, labels, organs, geometry)
    first = series.datasets[0]
    origins = {organ.name: origin_of(origin, organ) for organ in present}
    content = [algorithm, *((organ, origins[organ.name]) for organ in present)]
    uid = uid_of("SEG", identity_of(first, description, created_at, content), frames)
    with header_carried_over():
        made = highdicom.seg.Segmentation(
            source_images=series.datasets,
            pixel_array=frames,
            segmentation_type=SegmentationTypeValues.BINARY,
            segment_descriptions=[
                _description(number, organ, origins[organ.name], algorithm)
                for number, organ in enumerate(present, 1)
            ],
            series_instance_uid=uid_of(uid, "series"),
            sop_instance_uid=uid,
            series_description=description,
            content_label="SEGMENTATION",
            content_description=description,
            transfer_syntax_uid=ExplicitVRLittleEndian,
            omit_empty_frames=True,
            **equipment(),
        )
    return dated(made, created_at)


def origin_of(origin: Origin, organ: Organ) -> LabelSource:
    """Where the label of `organ` comes from."""
    return origin if isinstance(origin, LabelSource) else origin[organ.name]


def segment_frames(
    series: SourceSeries, labels: Labels, organs: OrganScheme, geometry: VolumeGeometry
) -> tuple[tuple[Organ, ...], NDArray[np.uint8]]:
    """The organs that have a voxel, and their segments.

    Returns:
        Organs in their order, and ``[slice, row, column]`` with 1 for the first of them and so on;
        where masks overlap ``[slice, row, column, organ]`` of 0 and 1.

    Raises:
        InvalidInput, UnknownLabel, GridMismatch: see `segmentation`.
    """
    if isinstance(labels, Mapping):
        masks = {
            organs[name].name: series.to_frames(mask, geometry, what=f"mask of {name}").astype(bool)
            for name, mask in labels.items()
        }
        present = tuple(o for o in organs if o.name in masks and masks[o.name].any())
        return _require_some(present), _stacked([masks[organ.name] for organ in present])
    frames = series.to_frames(labels, geometry)
    found = set(np.unique(frames).tolist()) - {BACKGROUND}
    if unknown := sorted(found - set(organs.labels)):
        raise UnknownLabel("value of the label map is no organ", expected=organs, got=unknown)
    present = _require_some(tuple(organ for organ in organs if organ.label in found))
    numbers = np.zeros(256, np.uint8)
    numbers[[organ.label for organ in present]] = np.arange(1, len(present) + 1)
    return present, numbers[frames.astype(np.uint8)]


def _require_some(present: tuple[Organ, ...]) -> tuple[Organ, ...]:
    if not present:
        raise InvalidInput("no voxel is labelled: nothing to write")
    return present


def _stacked(masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.uint8]:
    """One label map where `masks` are disjoint: a byte a voxel, whatever their number."""
    numbers = np.zeros(masks[0].shape, np.uint8)
    for number, mask in enumerate(masks, 1):
        if numbers[mask].any():
            return np.stack(masks, axis=-1).astype(np.uint8)
        numbers[mask] = number
    return numbers


def _description(
    number: int, organ: Organ, origin: LabelSource, algorithm: str
) -> SegmentDescription:
    kind = ALGORITHM_TYPE[origin]
    manual = kind is SegmentAlgorithmTypeValues.MANUAL
    return SegmentDescription(
        segment_number=number,
        segment_label=organ.title,
        segmented_property_category=CATEGORY,
        segmented_property_type=concept_of(organ),
        algorithm_type=kind,
        algorithm_identification=None
        if manual
        else highdicom.AlgorithmIdentificationSequence(
            name=algorithm, family=codes.DCM.ArtificialIntelligence, version=version("atlasloop")
        ),
        display_color=highdicom.color.CIELabColor.from_string(organ.colour),
    )
