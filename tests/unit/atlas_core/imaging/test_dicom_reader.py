"""DICOM series: where their voxels lie, and why some are no volume."""

from __future__ import annotations

import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from atlas_core.errors import (
    AtlasError,
    CorruptFile,
    LimitExceeded,
    NotFound,
    UnsupportedVolume,
)
from atlas_core.imaging import MAX_VOXELS, Volume, read_label, read_volume
from atlas_core.imaging.dicom_reader import find_series
from atlas_core.imaging.dicom_reader import write_series as write_volume_of
from dicom_series import (
    COLUMNS,
    ROWS,
    SERIES,
    SLICES,
    Change,
    jpeg_lossless,
    stored,
    write_series,
)
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import (
    EnhancedCTImageStorage,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)


def read_series(files: Sequence[Path], *, max_voxels: int = MAX_VOXELS) -> Volume:
    """The volume that a series becomes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "volume.nii")
        write_volume_of(files, file, max_voxels=max_voxels)
        return read_volume(file)


def refusal(tmp_path: Path, change: Change, slices: int = SLICES) -> AtlasError:
    files = write_series(tmp_path / "series", change, slices)
    with pytest.raises(AtlasError) as error:
        read_series(files)
    assert "Secret" not in str(error.value)
    assert str(tmp_path) not in str(error.value)
    return error.value


def test_a_series_becomes_a_volume_in_patient_coordinates(tmp_path: Path) -> None:
    volume = read_series(write_series(tmp_path / "series"))
    assert volume.voxels.shape == (COLUMNS, ROWS, SLICES)
    assert volume.voxels.flags.f_contiguous
    assert volume.voxels.dtype.kind == "i"
    for i, j, k in ((0, 0, 0), (4, 5, 3), (1, 2, 3)):
        assert volume.voxels[i, j, k] == i + 10 * j + 100 * k - 1024
        # DICOM's x runs to the left, RAS to the right; likewise y.
        place = volume.geometry.matrix @ (i, j, k, 1)
        assert np.allclose(place[:3], (20 - 0.8 * i, 30 - 0.7 * j, 100 + 2.5 * k))
    assert volume.geometry.axis_codes == "LPS"
    assert volume.geometry.spacing_mm == pytest.approx((0.8, 0.7, 2.5))  # not SliceThickness


def test_the_order_of_files_does_not_matter(tmp_path: Path) -> None:
    files = write_series(tmp_path / "series")
    one, other = read_series(files), read_series(files[::-1])
    assert np.array_equal(one.voxels, other.voxels)
    assert one.geometry == other.geometry


def test_a_tilted_patient_is_an_oblique_grid_not_a_tilted_gantry(tmp_path: Path) -> None:
    angle = np.radians(20)
    row = np.array([1.0, 0, 0])
    column = np.array([0, np.cos(angle), np.sin(angle)])

    def oblique(dataset: Dataset, k: int) -> None:
        dataset.ImageOrientationPatient = [*row, *column]
        dataset.ImagePositionPatient = list(np.round(2.0 * k * np.cross(row, column), 4))

    volume = read_series(write_series(tmp_path / "series", oblique))
    assert volume.geometry.spacing_mm == pytest.approx((0.8, 0.7, 2.0), abs=1e-4)
    assert np.allclose(volume.geometry.matrix[:3, 1], 0.7 * column * (-1, -1, 1), atol=1e-6)


def test_padding_outside_the_field_of_view_is_kept(tmp_path: Path) -> None:
    def padded(dataset: Dataset, k: int) -> None:
        pixels = stored(k)
        pixels[0, 0] = -2000
        dataset.PixelData, dataset.PixelPaddingValue = pixels.tobytes(), -2000

    assert read_series(write_series(tmp_path / "series", padded)).voxels[0, 0, 0] == -3024


@pytest.mark.parametrize(
    ("slope", "intercept", "dtype"), [(1, -1024, "int32"), (100, 0, "int32"), (0.5, 0, "float32")]
)
def test_rescaling_keeps_whole_numbers_whole(
    tmp_path: Path, slope: float, intercept: float, dtype: str
) -> None:
    def rescaled(dataset: Dataset, k: int) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
        dataset.PixelData = (stored(k) + 4).tobytes()

    volume = read_series(write_series(tmp_path / "series", rescaled))
    assert volume.voxels.dtype == dtype
    assert volume.voxels[4, 5, 3] == 358 * slope + intercept


def test_slices_may_have_their_own_rescaling(tmp_path: Path) -> None:
    def by_slice(dataset: Dataset, k: int) -> None:
        dataset.RescaleSlope = 1 + 0.25 * k

    assert read_series(write_series(tmp_path / "s", by_slice)).voxels[1, 0, 2] == 201 * 1.5 - 1024


def test_compressed_slices_are_decoded(tmp_path: Path) -> None:
    files = write_series(tmp_path / "series")
    plain = read_series(files)
    for file in files:
        dataset = dcmread(file)
        dataset.compress(RLELossless)
        dataset.save_as(file)
    assert np.array_equal(read_series(files).voxels, plain.voxels)


def test_positions_rounded_to_a_tenth_are_regular(tmp_path: Path) -> None:
    def rounded(dataset: Dataset, k: int) -> None:
        dataset.ImagePositionPatient = [0, 0, round(1.25 * k, 1)]

    volume = read_series(write_series(tmp_path / "series", rounded, slices=9))
    assert volume.geometry.spacing_mm[2] == pytest.approx(1.25)


# What is refused ------------------------------------------------------------------------------


def test_a_missing_slice_is_refused(tmp_path: Path) -> None:
    files = write_series(tmp_path / "series", slices=9)
    for missing in range(1, 8):
        with pytest.raises(UnsupportedVolume, match=r"uneven.*2\.5\.\.5 mm"):
            read_series(files[:missing] + files[missing + 1 :])


def test_gantry_tilt_is_refused(tmp_path: Path) -> None:
    def tilted(dataset: Dataset, k: int) -> None:
        dataset.ImagePositionPatient = [0, 0.8 * k, 2.5 * k]

    error = refusal(tmp_path, tilted)
    assert "gantry tilt" in str(error)
    assert "17.7 degrees" in str(error)


def test_two_slices_at_one_position_are_refused(tmp_path: Path) -> None:
    def twice(dataset: Dataset, k: int) -> None:
        dataset.ImagePositionPatient = [0, 0, 2.5 * (k // 2)]

    assert "2 slices lie at the position of another" in str(refusal(tmp_path, twice))


def test_mixed_series_are_refused(tmp_path: Path) -> None:
    def sizes(dataset: Dataset, k: int) -> None:
        if k == 2:
            dataset.Rows, dataset.PixelData = 5, stored(k)[:5].tobytes()

    def spacings(dataset: Dataset, k: int) -> None:
        dataset.PixelSpacing = [0.7 + 0.1 * (k == 1), 0.8]

    def orientations(dataset: Dataset, k: int) -> None:
        if k == 0:  # a localizer
            dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]

    for change, word in ((sizes, "sizes"), (spacings, "spacings"), (orientations, "orientations")):
        assert word in str(refusal(tmp_path, change))


@pytest.mark.parametrize(
    ("keyword", "value", "reason"),
    [
        ("Modality", "MR", "no CT"),
        ("NumberOfFrames", 4, "multi-frame"),
        ("SamplesPerPixel", 3, "colours"),
        ("RescaleType", "OD", "Hounsfield"),
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0], "orthogonal"),
        ("ImageOrientationPatient", [1, 0, 0], "malformed"),
        ("PixelSpacing", [0.0, 0.8], "spacing"),
    ],
)
def test_what_is_no_plain_ct_is_refused(
    tmp_path: Path, keyword: str, value: object, reason: str
) -> None:
    error = refusal(tmp_path, lambda dataset, k: setattr(dataset, keyword, value))
    assert isinstance(error, UnsupportedVolume)
    assert reason in str(error)


@pytest.mark.parametrize(
    "keyword",
    [
        "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope",
        "RescaleIntercept", "Rows", "BitsStored",
    ],
)  # fmt: skip
def test_missing_geometry_is_named(tmp_path: Path, keyword: str) -> None:
    error = refusal(tmp_path, lambda dataset, k: delattr(dataset, keyword))
    assert isinstance(error, UnsupportedVolume)
    assert keyword in str(error)


def test_damaged_pixels_are_corrupt(tmp_path: Path) -> None:
    def short(dataset: Dataset, k: int) -> None:
        dataset.PixelData = stored(k).tobytes()[:20]

    assert isinstance(refusal(tmp_path, short), CorruptFile)
    files = write_series(tmp_path / "cut")
    data = files[2].read_bytes()
    for length in (0, 100, 200, len(data) // 2, len(data) - 8):
        files[2].write_bytes(data[:length])
        with pytest.raises((CorruptFile, UnsupportedVolume)):
            read_series(files)


def test_limits_hold(tmp_path: Path) -> None:
    files = write_series(tmp_path / "series")
    with pytest.raises(LimitExceeded, match="120"):
        read_series(files, max_voxels=119)
    with pytest.raises(LimitExceeded, match="too many files"):
        find_series(tmp_path / "series", max_files=3)
    with files[0].open("r+b") as file:
        file.truncate(1 << 27)  # a hole: takes no space
    with pytest.raises(LimitExceeded, match="too large"):
        read_series(files)


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    for action in (lambda: read_series([]), lambda: read_series([tmp_path / "no.dcm"])):
        with pytest.raises(NotFound):
            action()
    with pytest.raises(NotFound):
        find_series(tmp_path / "nowhere")
    with pytest.raises(UnsupportedVolume, match="single slice"):
        read_series(write_series(tmp_path / "one", slices=1))


def test_series_of_one_folder_are_distinguished(tmp_path: Path) -> None:
    other = generate_uid()
    write_series(tmp_path / "a", slices=4)
    write_series(tmp_path / "b", lambda dataset, k: setattr(dataset, "SeriesInstanceUID", other), 3)
    (tmp_path / "readme.txt").write_text("not DICOM")
    (tmp_path / "empty.dcm").touch()
    found = find_series(tmp_path)
    assert [(one.uid, len(one.files), one.modality) for one in found] == [
        (SERIES, 4, "CT"),
        (other, 3, "CT"),
    ]


def as_jpeg_lossless(dataset: Dataset) -> None:
    pixels = np.frombuffer(dataset.PixelData, "<u2").reshape(dataset.Rows, dataset.Columns)
    dataset.PixelData = encapsulate([jpeg_lossless(pixels)])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1


def enhanced(files: Sequence[Path], path: Path) -> Path:
    """The slices of a series as the frames of one enhanced CT, in the order of their files."""
    slices = [dcmread(file) for file in files]
    made = Dataset(slices[0])
    made.file_meta = slices[0].file_meta
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = EnhancedCTImageStorage
    made.NumberOfFrames = len(slices)
    made.PixelData = b"".join(one.PixelData for one in slices)
    groups = {
        "PlanePositionSequence": ["ImagePositionPatient"],
        "PlaneOrientationSequence": ["ImageOrientationPatient"],
        "PixelMeasuresSequence": ["PixelSpacing"],
        "PixelValueTransformationSequence": ["RescaleSlope", "RescaleIntercept"],
    }

    def group(one: Dataset, names: Sequence[str]) -> Dataset:
        functional = Dataset()
        for name in names:
            item = Dataset()
            for keyword in groups[name]:
                setattr(item, keyword, one[keyword].value)
            setattr(functional, name, [item])
        return functional

    first, *shared = groups
    made.SharedFunctionalGroupsSequence = [group(slices[0], shared)]
    made.PerFrameFunctionalGroupsSequence = [group(one, [first]) for one in slices]
    for keyword in (keyword for names in groups.values() for keyword in names):
        delattr(made, keyword)
    made.save_as(path, enforce_file_format=True)
    return path


def test_an_enhanced_ct_is_the_series_of_its_frames(tmp_path: Path) -> None:
    files = write_series(tmp_path / "plain")
    plain = read_series(files)
    (tmp_path / "enhanced").mkdir()
    enhanced(files, tmp_path / "enhanced" / "one.dcm")
    (series,) = find_series(tmp_path / "enhanced")
    assert series.reason is None
    read = read_series(series.files)
    assert read.geometry == plain.geometry
    assert np.array_equal(read.voxels, plain.voxels)


def test_an_enhanced_ct_must_say_where_its_frames_lie(tmp_path: Path) -> None:
    file = enhanced(write_series(tmp_path / "plain"), tmp_path / "one.dcm")
    broken = dcmread(file)
    del broken.PerFrameFunctionalGroupsSequence[-1]
    broken.save_as(file)
    with pytest.raises(UnsupportedVolume, match="where its frames lie"):
        read_series([file])


# JPEG 2000 cannot be written this small; a real series of it is read below.
CODECS: dict[str, Callable[[Dataset], None]] = {
    "JPEG lossless": as_jpeg_lossless,
    "JPEG-LS": lambda dataset: dataset.compress(JPEGLSLossless, generate_instance_uid=False),
    "RLE": lambda dataset: dataset.compress(RLELossless, generate_instance_uid=False),
}


def unsigned(dataset: Dataset) -> None:
    dataset.PixelRepresentation, dataset.HighBit = 0, 15


@pytest.mark.parametrize("codec", CODECS)
def test_the_compressions_of_archives_are_read(tmp_path: Path, codec: str) -> None:
    plain = read_series(write_series(tmp_path / "plain", lambda ds, k: unsigned(ds)))

    def compressed(dataset: Dataset, k: int) -> None:
        unsigned(dataset)
        CODECS[codec](dataset)

    packed = read_series(write_series(tmp_path / "packed", compressed))
    assert np.array_equal(plain.voxels, packed.voxels)
    assert packed.geometry == plain.geometry


@pytest.mark.parametrize("codec", ["JPEG lossless", "JPEG-LS"])
def test_an_image_larger_than_its_header_is_not_decoded(tmp_path: Path, codec: str) -> None:
    def small_header(dataset: Dataset, k: int) -> None:
        unsigned(dataset)
        CODECS[codec](dataset)
        dataset.Rows -= 1

    assert "another size than its header" in str(refusal(tmp_path, small_header))


# Real series ----------------------------------------------------------------------------------


def unpacked(archive: Path, folder: Path) -> Path:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as zipped:
            zipped.extractall(folder)
    else:
        with tarfile.open(archive) as tarred:
            tarred.extractall(folder, filter="data")
    return folder


def test_a_jpeg_2000_series_lies_where_its_label_says(shared_data: Path) -> None:
    reference = shared_data / "TotalSegmentator/tests/reference_files"
    (series,) = find_series(reference / "example_ct_dicom")
    ct, label = read_series(series.files), read_label(reference / "example_seg_dicom.nii.gz")
    assert ct.geometry.canonical().same_grid(label.geometry.canonical())
    hu = ct.geometry.axis_map.to_canonical(ct.voxels)
    organs = label.geometry.axis_map.to_canonical(label.voxels)
    assert 60 < np.median(hu[organs == 5]) < 140  # contrast-enhanced liver
    assert 100 < np.median(hu[organs == 52]) < 300  # aorta


def test_a_whole_abdomen_is_read(shared_data: Path, tmp_path: Path) -> None:
    (series,) = find_series(unpacked(shared_data / "mirp/CRLM-CT-1004.tar.xz", tmp_path))
    volume = read_series(series.files)
    assert str(volume.geometry).startswith("512×512×41 LPS, 0.7969×0.7969×5 mm")
    assert volume.voxels.min() == -3024
    assert volume.voxels.dtype.kind == "i"


@pytest.mark.parametrize(
    ("archive", "reason"),
    [
        ("dcm_qa_ct/GE_gantrytilt_variable_spacing.tar.xz", r"uneven.*1\.08\.\.7 mm"),
        ("dicom-numpy/tests/dupe-positions.zip", "uneven.*115 mm"),  # beside a copy
    ],
)
def test_real_series_that_are_no_grid(
    shared_data: Path, tmp_path: Path, archive: str, reason: str
) -> None:
    (series,) = find_series(unpacked(shared_data / archive, tmp_path))
    with pytest.raises(UnsupportedVolume, match=reason):
        read_series(series.files)


def test_other_real_dicom_is_told_apart(shared_data: Path) -> None:
    (enhanced,) = find_series(shared_data / "pydicom-data")
    assert str(read_series(enhanced.files).geometry).startswith("512×512×2")
    for series in find_series(shared_data / "dcmqi/data/segmentations"):
        if series.modality == "SEG":
            with pytest.raises(UnsupportedVolume, match="no CT"):
                read_series(series.files)
