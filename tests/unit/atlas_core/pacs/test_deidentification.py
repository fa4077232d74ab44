"""De-identification: nothing of a person stays, and geometry, pixels and intervals do."""

from __future__ import annotations

import io
from datetime import date

import numpy as np
import pytest
from atlas_core.errors import UnsupportedVolume
from atlas_core.pacs import Pseudonyms, deidentified
from pacs_series import NAME, hospital_series, plant_names
from pydicom import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

PSEUDONYMS = Pseudonyms(b"k" * 32)
GEOMETRY = (
    *("Rows", "Columns", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("RescaleSlope", "RescaleIntercept", "PixelRepresentation", "PixelData", "SliceThickness"),
)


def as_bytes(dataset: Dataset) -> bytes:
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def test_a_name_planted_in_every_attribute_is_nowhere_afterwards() -> None:
    image = hospital_series(1)[0]
    assert plant_names(image) > 1000
    done = deidentified(image, PSEUDONYMS)
    assert NAME.lower().encode() not in as_bytes(done.dataset).lower()
    assert NAME.lower().encode() in as_bytes(image).lower()  # the original is not touched
    for keyword in GEOMETRY:
        assert done.dataset[keyword].value == image[keyword].value


def test_a_name_in_an_attribute_that_stays_is_found_by_the_patients_own() -> None:
    image = hospital_series(1)[0]
    image.Manufacturer, image.ScanOptions = f"Maker {NAME}", NAME.upper()
    image.SoftwareVersions = ["1", f"of {NAME}"]
    assert NAME.lower().encode() not in as_bytes(deidentified(image, PSEUDONYMS).dataset).lower()


def test_what_was_removed_is_told_by_tag() -> None:
    image = hospital_series(1)[0]
    removed = deidentified(image, PSEUDONYMS).removed
    assert {0x00100010, 0x00100020, 0x00080050, 0x0020000D} <= {int(tag) for tag in removed}
    assert int(image["Rows"].tag) not in {int(tag) for tag in removed}


def test_uids_are_replaced_everywhere_by_the_same_ones() -> None:
    first, second = hospital_series(2)
    second.SourceImageSequence = [Dataset()]
    second.SourceImageSequence[0].ReferencedSOPInstanceUID = first.SOPInstanceUID
    second.SourceImageSequence[0].ReferencedSOPClassUID = first.SOPClassUID
    one, other = (deidentified(image, PSEUDONYMS) for image in (first, second))
    assert one.dataset.SeriesInstanceUID == other.dataset.SeriesInstanceUID
    assert one.dataset.SeriesInstanceUID != first.SeriesInstanceUID
    assert one.names[one.dataset.SOPInstanceUID] == first.SOPInstanceUID
    assert one.dataset.SOPClassUID == first.SOPClassUID
    assert other.dataset.PatientID == one.dataset.PatientID
    elsewhere = Pseudonyms(b"l" * 32)
    assert deidentified(first, elsewhere).dataset.PatientID != one.dataset.PatientID


def test_intervals_between_examinations_stay() -> None:
    dates = []
    for day in ("20240101", "20240301"):
        image = hospital_series(1)[0]
        image.StudyDate = day
        dates.append(str(deidentified(image, PSEUDONYMS).dataset.StudyDate))
    first, second = (date(int(d[:4]), int(d[4:6]), int(d[6:])) for d in dates)
    assert (second - first).days == 60
    assert dates[0] != "20240101"


def test_malformed_values_do_not_stop_it() -> None:
    image = hospital_series(1)[0]
    image.add_new((0x0018, 0x0060), "DS", "120")
    image["KVP"]._value = NAME
    image.StudyDate = "soon"
    assert NAME.encode() not in as_bytes(deidentified(image, PSEUDONYMS).dataset)


@pytest.mark.parametrize(
    ("keyword", "value", "reason"),
    [
        ("BurnedInAnnotation", "YES", "burnt"),
        ("SOPClassUID", SecondaryCaptureImageStorage, "SOP class"),
        ("ConversionType", "WSD", "secondary capture"),
        ("SeriesInstanceUID", "", "SeriesInstanceUID"),
    ],
)
def test_what_cannot_be_cleaned_is_refused(keyword: str, value: str, reason: str) -> None:
    image = hospital_series(1)[0]
    setattr(image, keyword, value)
    with pytest.raises(UnsupportedVolume, match=reason):
        deidentified(image, PSEUDONYMS)


def test_pixels_are_read_as_before() -> None:
    image = hospital_series(1)[0]
    done = deidentified(image, PSEUDONYMS).dataset
    assert np.array_equal(done.pixel_array, image.pixel_array)
