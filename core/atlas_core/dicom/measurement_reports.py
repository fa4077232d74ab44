"""Organ volumes → a structured report by template 1500, with the segments that were measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from highdicom import sr
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from atlas_core.dicom.codes import SIDES, concept_of, organs_of
from atlas_core.dicom.instances import (
    MANUFACTURER,
    dated,
    equipment,
    header_carried_over,
    identity_of,
    uid_of,
)
from atlas_core.dicom.source_series import SourceSeries
from atlas_core.errors import InvalidInput
from atlas_core.organs import Organ, OrganScheme

DECIMALS: Final = 3
"""Of millilitres: a cubic millimetre."""


def measurement_report(
    source: Sequence[Dataset],
    segmentation: Dataset,
    organs: OrganScheme,
    volumes_ml: Mapping[str, float],
    *,
    created_at: datetime,
    description: str = "Atlas Loop organ volumes",
) -> Dataset:
    """A DICOM SR (TID 1500) of organ volumes.

    Args:
        source: headers of all slices of the CT series.
        segmentation: the SEG of ours that shows what was measured.
        organs: what names mean.
        volumes_ml: volume of each organ in millilitres; organs without a segment are left out.
        created_at: when they were measured.
        description: SeriesDescription.

    Raises:
        InvalidInput: no organ has both a volume and a segment.
        UnsupportedVolume: as `segmentation`.
    """
    series = SourceSeries.of(source)
    first = series.datasets[0]
    numbers = _segments(segmentation, organs)
    measured = [organ for organ in organs if organ.name in numbers and organ.name in volumes_ml]
    if not measured:
        raise InvalidInput("no organ has a volume and a segment: nothing to report")
    values = [(organ.name, round(volumes_ml[organ.name], DECIMALS)) for organ in measured]
    identity = identity_of(first, description, created_at, values)
    uid = uid_of("SR", identity, segmentation.SOPInstanceUID)
    groups = [
        _group(organ, segmentation, numbers[organ.name], value, uid)
        for organ, (_, value) in zip(measured, values, strict=True)
    ]
    observer = sr.DeviceObserverIdentifyingAttributes(
        uid=uid_of("device", MANUFACTURER), name=MANUFACTURER, manufacturer_name=MANUFACTURER
    )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(
            observer_device_context=sr.ObserverContext(codes.DCM.Device, observer)
        ),
        procedure_reported=codes.LN.CTUnspecifiedBodyRegion,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    with header_carried_over():
        made = sr.Comprehensive3DSR(
            evidence=[segmentation, *series.datasets],
            content=content,
            series_instance_uid=uid_of(uid, "series"),
            sop_instance_uid=uid,
            series_description=description,
            transfer_syntax_uid=ExplicitVRLittleEndian,
            is_complete=True,
            **equipment(),
        )
    return dated(made, created_at)


def _segments(segmentation: Dataset, organs: OrganScheme) -> dict[str, int]:
    """Organ → number of its segment."""
    found = {}
    for item in segmentation.SegmentSequence:
        meant = organs_of(item.SegmentedPropertyTypeCodeSequence[0], organs) or ()
        for organ in meant if len(meant) == 1 else organs.called(str(item.SegmentLabel)):
            found[organ.name] = int(item.SegmentNumber)
    return found


def _group(
    organ: Organ, segmentation: Dataset, number: int, value: float, uid: str
) -> sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    concept = concept_of(organ)
    plain = sr.CodedConcept(concept.value, concept.scheme_designator, concept.meaning)
    side = organ.snomed.side if organ.snomed is not None else None
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=uid_of(uid, organ.name), identifier=organ.title
        ),
        # `from_segmentation` fails where all frames are of one segment.
        referenced_segment=sr.ReferencedSegment(
            sop_class_uid=segmentation.SOPClassUID,
            sop_instance_uid=segmentation.SOPInstanceUID,
            segment_number=number,
            source_series=sr.SourceSeriesForSegmentation(
                segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID
            ),
        ),
        finding_category=codes.SCT.AnatomicalStructure,
        finding_type=plain,
        finding_sites=[sr.FindingSite(plain, laterality=SIDES[side] if side else None)],
        measurements=[
            sr.Measurement(name=codes.SCT.Volume, value=value, unit=codes.UCUM.CubicCentimeter)
        ],
    )
