"""Structure sets, parametric maps and reports say what the labels and maps say, by the standard."""

from __future__ import annotations

import io
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from atlas_core.dicom import (
    measurement_report,
    open_labels,
    parametric_map,
    read_headers,
    segmentation,
    structure_set,
)
from atlas_core.errors import GridMismatch, InvalidInput
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import read_volume
from atlas_core.imaging.dicom_reader import write_series as import_series
from atlas_core.organs import read_scheme
from atlas_core.records import LabelSource
from dicom_iods import problems, unknown_tags
from dicom_series import ORIENTATIONS, in_a_study, write_series
from highdicom.sr import Comprehensive3DSR
from pydicom import Dataset, dcmread

ORGANS = read_scheme("abdomen_atlas_1_1")
DCIODVFY = Path("/usr/bin/dciodvfy")
MADE = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)


class Source:
    """A series, its grid, and labels with a hole on it."""

    def __init__(self, folder: Path, orientation: str = "axial") -> None:
        files = write_series(folder / "series", in_a_study(ORIENTATIONS[orientation]))
        import_series(files, folder / "ct.nii.gz")
        self.headers = read_headers(files)
        self.geometry: VolumeGeometry = read_volume(folder / "ct.nii.gz").geometry
        self.labels = np.zeros(self.geometry.shape, np.uint8)
        self.labels[0:4, 1:5, 1:3] = ORGANS["liver"].label
        self.labels[1:3, 2:4, 1] = 0
        self.labels[4, 5, 3] = ORGANS["kidney_left"].label

    def segmentation(self) -> Dataset:
        return segmentation(
            self.headers,
            self.labels,
            ORGANS,
            geometry=self.geometry,
            origin=LabelSource.PSEUDO,
            created_at=MADE,
        )

    def structures(self) -> Dataset:
        return structure_set(
            self.headers,
            self.labels,
            ORGANS,
            geometry=self.geometry,
            origin=LabelSource.REVISED,
            created_at=MADE,
        )

    def attention(self) -> Dataset:
        stored = (self.labels > 0) * np.uint8(34)
        return parametric_map(
            self.headers, stored, slope=1 / 136, geometry=self.geometry, created_at=MADE
        )

    def report(self) -> Dataset:
        volumes = {"liver": 1234.5678, "kidney_left": 150.0, "spleen": 200.0}
        return measurement_report(
            self.headers, self.segmentation(), ORGANS, volumes, created_at=MADE
        )


def filed(made: Dataset) -> Dataset:
    """As a file holds it."""
    buffer = io.BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    return dcmread(buffer)


@pytest.mark.parametrize("kind", ["segmentation", "structures", "attention", "report"])
def test_objects_have_what_the_standard_asks_for(tmp_path: Path, kind: str) -> None:
    source = Source(tmp_path)
    made = filed(getattr(source, kind)())
    assert problems(made) == []
    assert unknown_tags(made) == []
    assert filed(getattr(source, kind)()) == made, "nothing is random"
    first = source.headers[0]
    assert made.StudyInstanceUID == first.StudyInstanceUID
    assert made.PatientID == first.PatientID
    assert made.SeriesInstanceUID not in (first.SeriesInstanceUID, made.SOPInstanceUID)


@pytest.mark.parametrize("kind", ["segmentation", "structures", "attention", "report"])
def test_a_validator_finds_no_error(tmp_path: Path, kind: str) -> None:
    if not DCIODVFY.exists():
        pytest.skip("dciodvfy is missing: make setup-pacs")
    getattr(Source(tmp_path), kind)().save_as(tmp_path / "made.dcm", enforce_file_format=True)
    done = subprocess.run(
        [DCIODVFY, "-new", tmp_path / "made.dcm"], capture_output=True, text=True, check=False
    )
    assert [line for line in done.stderr.splitlines() if "Error" in line] == []
    assert done.returncode == 0


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_contours_give_the_voxels_back(tmp_path: Path, orientation: str) -> None:
    source = Source(tmp_path, orientation)
    source.structures().save_as(tmp_path / "rs.dcm", enforce_file_format=True)
    found = open_labels(tmp_path / "rs.dcm")
    assert [one.name for one in found.segments] == ["kidney left", "liver"]
    for segment, name in zip(found.segments, ("kidney_left", "liver"), strict=True):
        mask = source.labels == ORGANS[name].label
        assert np.array_equal(found.mask(segment, source.geometry), mask)


def test_contours_refer_to_the_slices_that_they_lie_in(tmp_path: Path) -> None:
    source = Source(tmp_path)
    made = source.structures()
    places = {one.SOPInstanceUID: one.ImagePositionPatient[2] for one in source.headers}
    contours = [c for roi in made.ROIContourSequence for c in roi.ContourSequence]
    assert len(contours) == 1 + 2 + 1  # a kidney, a liver with a hole, a liver
    for contour in contours:
        (image,) = contour.ContourImageSequence
        heights = set(map(float, contour.ContourData[2::3]))
        assert heights == {float(places[image.ReferencedSOPInstanceUID])}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_attention_has_its_values_in_its_places(tmp_path: Path, orientation: str) -> None:
    source = Source(tmp_path, orientation)
    made = filed(source.attention())
    mapping = made.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    slope = float(mapping.RealWorldValueSlope)
    expected = {}
    for index in np.argwhere(source.labels):
        place = (source.geometry.matrix @ [*index, 1])[:3] * [-1, -1, 1]
        expected[tuple(np.round(place, 2) + 0.0)] = 0.25
    found = {}
    orientation_of = made.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    along, down = np.array(orientation_of.ImageOrientationPatient, float).reshape(2, 3)
    between = made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    for frame, groups in zip(made.pixel_array, made.PerFrameFunctionalGroupsSequence, strict=True):
        origin = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        for row, column in np.argwhere(frame):
            place = origin + row * between[0] * down + column * between[1] * along
            found[tuple(np.round(place, 2) + 0.0)] = round(frame[row, column] * slope, 4)
    assert found == expected


def test_a_report_has_the_volume_of_each_segment(tmp_path: Path) -> None:
    source = Source(tmp_path)
    read = Comprehensive3DSR.from_dataset(filed(source.report()))
    groups = read.content.get_volumetric_roi_measurement_groups()
    found = {
        group.tracking_identifier: (measurement.value, measurement.unit.value)
        for group in groups
        for measurement in group.get_measurements()
    }
    assert found == {"kidney left": (150.0, "cm3"), "liver": (1234.568, "cm3")}
    numbers = {s.SegmentLabel: s.SegmentNumber for s in source.segmentation().SegmentSequence}
    for group in groups:
        assert list(group.referenced_segment.referenced_segment_numbers) == [
            numbers[group.tracking_identifier]
        ]


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    source = Source(tmp_path)
    values = np.zeros(source.geometry.shape, np.uint8)
    options = {"slope": 1 / 136, "geometry": source.geometry, "created_at": MADE}
    with pytest.raises(InvalidInput, match="nothing to write"):
        parametric_map(source.headers, values, **options)
    with pytest.raises(GridMismatch):
        parametric_map(source.headers, values[1:] + 1, **options)
    with pytest.raises(InvalidInput, match="nothing to report"):
        measurement_report(
            source.headers, source.segmentation(), ORGANS, {"spleen": 1.0}, created_at=MADE
        )
