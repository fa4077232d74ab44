"""A DICOM SEG says exactly what the labels say: read back by two readers, whatever the series."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path

import highdicom
import numpy as np
import pytest
from atlas_core.dicom import organs_of, read_headers, segmentation
from atlas_core.errors import GridMismatch, InvalidInput, UnknownLabel, UnsupportedVolume
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import read_volume
from atlas_core.imaging.dicom_reader import write_series as import_series
from atlas_core.organs import read_scheme, shipped_schemes
from atlas_core.records import LabelSource
from dicom_series import ORIENTATIONS, in_a_study, write_series
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes

ORGANS = read_scheme("abdomen_atlas_1_1")
MADE = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
Points = set[tuple[str, float, float, float]]


def imported(folder: Path, change=ORIENTATIONS["axial"]) -> tuple[list[Dataset], VolumeGeometry]:
    """A series' headers, and the grid that the importer gives its CT."""
    files = write_series(folder / "series", in_a_study(change))
    import_series(files, folder / "ct.nii.gz")
    return read_headers(files), read_volume(folder / "ct.nii.gz").geometry


def label_map(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    labels = np.zeros(shape, np.uint8)
    labels[1:3, 2:5, 1] = ORGANS["liver"].label
    labels[0, 1, :] = ORGANS["kidney_left"].label
    labels[3, 4, 2:] = ORGANS["hepatic_vessel"].label
    return labels


def written(labels, geometry, headers, **changes) -> Dataset:
    """As a file holds it."""
    options = {"origin": LabelSource.PSEUDO, "created_at": MADE} | changes
    made = segmentation(headers, labels, ORGANS, geometry=geometry, **options)
    buffer = io.BytesIO()
    made.save_as(buffer)
    buffer.seek(0)
    return dcmread(buffer)


def points_of_labels(labels: NDArray[np.uint8], geometry: VolumeGeometry) -> Points:
    """Organ and place (LPS, mm) of each labelled voxel."""
    found = set()
    for organ in ORGANS:
        for index in np.argwhere(labels == organ.label):
            x, y, z = (geometry.matrix @ [*index, 1])[:3]
            found.add((organ.title, *np.round([-x, -y, z], 2).tolist()))
    return {(name, *(v + 0.0 for v in place)) for name, *place in found}


def points_by_attributes(seg: Dataset) -> Points:
    """The same, read from bits and functional groups by nothing but the standard's formulas."""
    rows, columns = seg.Rows, seg.Columns
    bits = np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder="little")
    frames = bits[: seg.NumberOfFrames * rows * columns].reshape(-1, rows, columns)
    titles = {item.SegmentNumber: item.SegmentLabel for item in seg.SegmentSequence}
    shared = seg.SharedFunctionalGroupsSequence[0]
    found = set()
    for frame, groups in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
        between_rows, between_columns = shared.PixelMeasuresSequence[0].PixelSpacing
        along = np.array(orientation[:3], float) * between_columns
        down = np.array(orientation[3:], float) * between_rows
        origin = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        for row, column in np.argwhere(frame):
            place = np.round(origin + column * along + row * down, 2) + 0.0
            found.add((titles[number], *place.tolist()))
    return found


def points_by_highdicom(seg: Dataset) -> Points:
    read = highdicom.seg.Segmentation.from_dataset(seg)
    found = set()
    for number in read.segment_numbers:
        volume = read.get_volume(segment_numbers=[number], combine_segments=True)
        title = read.get_segment_description(number).segment_label
        for index in np.argwhere(volume.array):
            place = np.round((volume.affine @ [*index, 1])[:3], 2) + 0.0
            found.add((title, *place.tolist()))
    return found


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_both_readers_find_each_voxel_where_the_label_has_it(
    orientation: str, tmp_path: Path
) -> None:
    headers, geometry = imported(tmp_path, ORIENTATIONS[orientation])
    labels = label_map(geometry.shape)
    seg = written(labels, geometry, headers)
    expected = points_of_labels(labels, geometry)
    assert points_by_attributes(seg) == expected
    assert points_by_highdicom(seg) == expected


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_label_in_another_order_of_axes_gives_the_same_object(
    orientation: str, tmp_path: Path
) -> None:
    headers, geometry = imported(tmp_path, ORIENTATIONS[orientation])
    labels = label_map(geometry.shape)
    turned = geometry.axis_map.to_canonical(labels)
    assert written(turned, geometry.canonical(), headers) == written(labels, geometry, headers)


def test_the_same_labels_give_the_same_bytes_and_others_another_uid(tmp_path: Path) -> None:
    headers, geometry = imported(tmp_path)
    labels = label_map(geometry.shape)
    first, again = written(labels, geometry, headers), written(labels, geometry, headers[::-1])
    assert first == again
    other = labels.copy()
    other[4, 5, 0] = ORGANS["spleen"].label
    assert written(other, geometry, headers).SOPInstanceUID != first.SOPInstanceUID


def test_the_headers_of_the_source_stay_as_they_are(tmp_path: Path) -> None:
    headers, geometry = imported(tmp_path)
    before = [header.to_json_dict() for header in headers]
    written(label_map(geometry.shape), geometry, headers)
    assert [header.to_json_dict() for header in headers] == before


def test_masks_may_overlap_and_empty_frames_and_organs_are_left_out(tmp_path: Path) -> None:
    headers, geometry = imported(tmp_path)
    liver = np.zeros(geometry.shape, bool)
    liver[1:3, 2:5, 1] = True
    vessel = np.zeros(geometry.shape, bool)
    vessel[2, 2:4, 1:3] = True
    masks = {"liver": liver, "hepatic_vessel": vessel, "spleen": np.zeros(geometry.shape, bool)}
    seg = written(masks, geometry, headers)
    assert [item.SegmentLabel for item in seg.SegmentSequence] == ["liver", "hepatic vessel"]
    assert seg.NumberOfFrames == 1 + 2
    found = points_by_attributes(seg)
    assert sum(name == "liver" for name, *_ in found) == liver.sum()
    assert sum(name == "hepatic vessel" for name, *_ in found) == vessel.sum()


def test_each_organ_says_who_made_it_and_what_it_is(tmp_path: Path) -> None:
    headers, geometry = imported(tmp_path)
    origin = {
        "liver": LabelSource.PSEUDO,
        "kidney_left": LabelSource.REVISED,
        "hepatic_vessel": LabelSource.ORIGINAL,
    }
    seg = written(label_map(geometry.shape), geometry, headers, origin=origin, algorithm="three")
    kidney, liver, vessel = seg.SegmentSequence
    assert [one.SegmentAlgorithmType for one in (kidney, liver, vessel)] == [
        "SEMIAUTOMATIC",
        "AUTOMATIC",
        "MANUAL",
    ]
    assert liver.SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == "three"
    assert kidney.SegmentedPropertyTypeCodeSequence[0].CodeValue == codes.SCT.Kidney.value
    modifiers = kidney.SegmentedPropertyTypeCodeSequence[
        0
    ].SegmentedPropertyTypeModifierCodeSequence
    assert [one.CodeValue for one in modifiers] == [codes.SCT.Left.value]
    assert vessel.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator == "99ATLASLOOP"
    for item, name in ((kidney, "kidney_left"), (liver, "liver"), (vessel, "hepatic_vessel")):
        assert organs_of(item.SegmentedPropertyTypeCodeSequence[0], ORGANS) == (ORGANS[name],)
        shown = highdicom.color.CIELabColor.from_dicom_value(item.RecommendedDisplayCIELabValue)
        wanted = bytes.fromhex(ORGANS[name].colour[1:])
        assert np.abs(np.array(shown.to_rgb()) - np.frombuffer(wanted, np.uint8)).max() <= 2


def test_it_refers_to_every_slice_of_its_source(tmp_path: Path) -> None:
    headers, geometry = imported(tmp_path)
    seg = written(label_map(geometry.shape), geometry, headers)
    (series,) = seg.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == headers[0].SeriesInstanceUID
    referred = {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence}
    assert referred == {header.SOPInstanceUID for header in headers}
    assert seg.StudyInstanceUID == headers[0].StudyInstanceUID
    assert seg.FrameOfReferenceUID == headers[0].FrameOfReferenceUID
    places = {tuple(header.ImagePositionPatient): header.SOPInstanceUID for header in headers}
    for groups in seg.PerFrameFunctionalGroupsSequence:
        place = tuple(groups.PlanePositionSequence[0].ImagePositionPatient)
        image = groups.DerivationImageSequence[0].SourceImageSequence[0]
        assert image.ReferencedSOPInstanceUID == places[place]


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    headers, geometry = imported(tmp_path)
    labels = label_map(geometry.shape)
    shifted = geometry.cropped((0, 0, 1), geometry.shape)
    with pytest.raises(GridMismatch, match="source series"):
        written(labels, shifted, headers)
    with pytest.raises(InvalidInput, match="nothing to write"):
        written(np.zeros_like(labels), geometry, headers)
    with pytest.raises(UnknownLabel):
        written(labels + np.uint8(100), geometry, headers)
    del headers[2].StudyInstanceUID
    with pytest.raises(UnsupportedVolume, match="StudyInstanceUID"):
        written(labels, geometry, headers)


def test_a_malformed_patient_is_refused_without_being_quoted(tmp_path: Path) -> None:
    headers, geometry = imported(tmp_path)
    for header in headers:
        header.PatientSex = "Secret"
    with pytest.raises(UnsupportedVolume) as refused:
        written(label_map(geometry.shape), geometry, headers)
    assert "Secret" not in str(refused.value)


@pytest.mark.parametrize("scheme", shipped_schemes())
def test_codes_are_those_of_the_standard(scheme: str) -> None:
    """PS3.16's dictionary has each of them; no two organs have the same code and side."""
    from pydicom.sr._concepts_dict import concepts

    known: dict[str, set[str]] = {}
    for entry in concepts["SCT"].values():
        for code, (meaning, _) in entry.items():
            known.setdefault(code, set()).add(meaning)
    coded = [organ for organ in read_scheme(scheme) if organ.snomed is not None]
    for organ in coded:
        assert organ.snomed is not None
        assert organ.snomed.meaning in known[organ.snomed.code], organ.name
        assert organ.snomed.side in (None, organ.side)
    assert len({(organ.snomed) for organ in coded}) == len(coded)
