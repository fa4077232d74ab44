"""Labels → DICOM RT Structure Set: closed contours around the voxels of each organ, slice by slice.

A contour runs halfway between the centres of voxels inside and outside, holes have contours of
their own. Filled at voxel centres by the even-odd rule it gives the very voxels back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final

import contourpy
import numpy as np
from highdicom.base import SOPClass
from highdicom.sr import CodedConcept
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage

from atlas_core.dicom.codes import concept_of
from atlas_core.dicom.instances import (
    dated,
    equipment,
    header_carried_over,
    identity_of,
    study_of,
    uid_of,
)
from atlas_core.dicom.segmentations import (
    ALGORITHM_TYPE,
    Labels,
    Origin,
    origin_of,
    segment_frames,
)
from atlas_core.dicom.source_series import SourceSeries
from atlas_core.geometry import VolumeGeometry
from atlas_core.organs import Organ, OrganScheme
from atlas_core.records import LabelSource

DECIMALS: Final = 4
"""Of coordinates in mm; a decimal string has 16 characters."""


def structure_set(
    source: Sequence[Dataset],
    labels: Labels,
    organs: OrganScheme,
    *,
    geometry: VolumeGeometry,
    origin: Origin,
    created_at: datetime,
    description: str = "Atlas Loop labels",
) -> Dataset:
    """A DICOM RTSTRUCT of `labels`; arguments, order and errors as of `segmentation`."""
    series = SourceSeries.of(source)
    present, frames = segment_frames(series, labels, organs, geometry)
    first = series.datasets[0]
    origins = [origin_of(origin, organ) for organ in present]
    uid = uid_of(
        "RTSTRUCT",
        identity_of(first, description, created_at, list(zip(present, origins, strict=True))),
        frames,
    )
    with header_carried_over():
        made = SOPClass(
            **study_of(first),
            **equipment(),
            series_instance_uid=uid_of(uid, "series"),
            sop_instance_uid=uid,
            sop_class_uid=RTStructureSetStorage,
            modality="RTSTRUCT",
            series_description=description,
            transfer_syntax_uid=ExplicitVRLittleEndian,
        )
        made.copy_patient_and_study_information(first)
    made.OperatorsName = None
    made.StructureSetLabel = "LABELS"
    made.StructureSetDate = made.StructureSetTime = None
    made.FrameOfReferenceUID = first.FrameOfReferenceUID
    made.PositionReferenceIndicator = None
    made.ReferencedFrameOfReferenceSequence = [_referenced(series)]
    numbered = list(enumerate(zip(present, origins, strict=True), 1))
    made.StructureSetROISequence = [
        _structure(number, organ, one, first) for number, (organ, one) in numbered
    ]
    made.ROIContourSequence = [
        _drawn(number, organ, series, frames) for number, (organ, _) in numbered
    ]
    made.RTROIObservationsSequence = [_observed(number, organ) for number, (organ, _) in numbered]
    return dated(made, created_at)


def _item(**attributes: object) -> Dataset:
    item = Dataset()
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    return item


def _referenced(series: SourceSeries) -> Dataset:
    first = series.datasets[0]
    of_series = _item(
        SeriesInstanceUID=first.SeriesInstanceUID,
        ContourImageSequence=[_image(one) for one in series.datasets],
    )
    study = _item(
        # Detached Study Management: retired, and what this attribute still asks for.
        ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1",
        ReferencedSOPInstanceUID=first.StudyInstanceUID,
        RTReferencedSeriesSequence=[of_series],
    )
    return _item(FrameOfReferenceUID=first.FrameOfReferenceUID, RTReferencedStudySequence=[study])


def _image(one: Dataset) -> Dataset:
    return _item(ReferencedSOPClassUID=one.SOPClassUID, ReferencedSOPInstanceUID=one.SOPInstanceUID)


def _structure(number: int, organ: Organ, origin: LabelSource, first: Dataset) -> Dataset:
    return _item(
        ROINumber=number,
        ReferencedFrameOfReferenceUID=first.FrameOfReferenceUID,
        ROIName=organ.title,
        ROIGenerationAlgorithm=ALGORITHM_TYPE[origin].value,
    )


def _observed(number: int, organ: Organ) -> Dataset:
    concept: CodedConcept = concept_of(organ)
    return _item(
        ObservationNumber=number,
        ReferencedROINumber=number,
        RTROIIdentificationCodeSequence=[concept],
        RTROIInterpretedType="ORGAN",
        ROIInterpreter=None,
    )


def _drawn(number: int, organ: Organ, series: SourceSeries, frames: NDArray[np.uint8]) -> Dataset:
    colour = [int(organ.colour[n : n + 2], 16) for n in (1, 3, 5)]
    contours: list[Dataset] = []
    for one, frame in zip(series.datasets, frames, strict=True):
        inside = frame == number if frame.ndim == 2 else frame[..., number - 1] != 0
        for points in outlines(inside):
            contours.append(
                _item(
                    ContourImageSequence=[_image(one)],
                    ContourGeometricType="CLOSED_PLANAR",
                    NumberOfContourPoints=len(points),
                    ContourNumber=len(contours) + 1,
                    ContourData=[f"{v:.{DECIMALS}f}" for v in _placed(points, one).ravel()],
                )
            )
    return _item(ROIDisplayColor=colour, ContourSequence=contours, ReferencedROINumber=number)


def outlines(inside: NDArray[np.bool_]) -> Iterator[NDArray[np.float64]]:
    """Closed outlines ``[point, (row, column)]`` of a mask ``[row, column]``, the last point not
    repeated."""
    if not inside.any():
        return
    padded = np.pad(inside, 1).astype(np.float64)
    for line in contourpy.contour_generator(z=padded).lines(0.5):
        yield np.asarray(line)[:-1, ::-1] - 1


def _placed(points: NDArray[np.float64], one: Dataset) -> NDArray[np.float64]:
    """`points` in the slice `one`, in LPS mm."""
    along, down = np.array(one.ImageOrientationPatient, np.float64).reshape(2, 3)
    between_rows, between_columns = map(float, one.PixelSpacing)
    return np.asarray(
        np.array(one.ImagePositionPatient, np.float64)
        + points[:, :1] * between_rows * down
        + points[:, 1:] * between_columns * along
    )
