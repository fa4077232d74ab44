"""DICOM SEG and RTSTRUCT beside a series become original labels, or are refused with a reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from atlas_core.catalog import Catalog
from atlas_core.dicom import read_headers, segmentation
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import read_label, read_volume
from atlas_core.imaging.dicom_reader import write_series as import_series
from atlas_core.importing import Fate, ImportSummary, import_folder
from atlas_core.organs import Organ, OrganScheme, read_scheme
from atlas_core.records import LabelSource
from atlas_core.store import CaseStore
from dicom_series import ORIENTATIONS, Change, in_a_study, write_series
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

ORGANS = read_scheme("abdomen_atlas_1_0")
LIVER, KIDNEY = ORGANS["liver"].label, ORGANS["kidney_left"].label


class Site:
    """A CT series in a folder, and what an import makes of that folder."""

    def __init__(self, tmp_path: Path, catalog: Catalog) -> None:
        self.folder, self._catalog = tmp_path / "in", catalog
        self._store = CaseStore(tmp_path / "store")
        self.folder.mkdir()

    def series(self, change: Change = ORIENTATIONS["axial"]) -> tuple[list[Dataset], Any]:
        files = write_series(self.folder / "ct", in_a_study(change))
        import_series(files, self.folder.parent / "ct.nii.gz")
        return read_headers(files), read_volume(self.folder.parent / "ct.nii.gz").geometry

    def run(self, **more: Any) -> ImportSummary:
        summary = import_folder(
            self.folder, "site", catalog=self._catalog, store=self._store, force=True, **more
        )
        found = {p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*.*")}
        assert {file.source for file in summary.files} == found, "every file is accounted for"
        return summary

    def labels(self) -> dict[str, np.ndarray]:
        """Masks of the only case, in the axis order of its CT."""
        (case,) = self._catalog.cases()
        labels = self._catalog.labels(case.id, LabelSource.ORIGINAL)
        return {one.organ: read_label(self._store.path(one.path)).voxels == 1 for one in labels}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Catalog.open(f"sqlite:///{tmp_path}/catalog.sqlite") as catalog:
        yield Site(tmp_path, catalog)


def fates(summary: ImportSummary) -> dict[str, tuple[Fate, str]]:
    return {f.source: (f.fate, f.reason) for f in summary.files if f.source.startswith("seg")}


def notes(summary: ImportSummary) -> str:
    return "\n".join(note.reason for note in summary.warnings)


def label_map(geometry: VolumeGeometry) -> np.ndarray:
    labels = np.zeros(geometry.shape, np.uint8)
    labels[1:3, 2:5, 1] = LIVER
    labels[0, 1, :] = KIDNEY
    return labels


def write_seg(
    path: Path,
    headers: list[Dataset],
    labels: Any,
    geometry: VolumeGeometry,
    change: Callable[[Dataset], None] = lambda dataset: None,
    organs: OrganScheme = ORGANS,
) -> None:
    made = segmentation(
        headers,
        labels,
        organs,
        geometry=geometry,
        origin=LabelSource.ORIGINAL,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    made.save_as(path)
    changed = dcmread(path)  # in memory, frames share their positions
    change(changed)
    changed.save_as(path)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_segmentation_comes_back_as_it_went_out(site: Site, orientation: str) -> None:
    headers, geometry = site.series(ORIENTATIONS[orientation])
    labels = label_map(geometry)
    write_seg(site.folder / "seg.dcm", headers, labels, geometry)
    assert fates(site.run()) == {"seg.dcm": (Fate.TAKEN, "")}
    found = site.labels()
    assert set(found) == {"liver", "kidney_left"}
    assert np.array_equal(found["liver"], labels == LIVER)
    assert np.array_equal(found["kidney_left"], labels == KIDNEY)


def test_masks_that_overlap_and_a_cropped_frame_keep_their_voxels(site: Site) -> None:
    headers, geometry = site.series()
    masks = {"liver": np.zeros(geometry.shape, bool), "spleen": np.zeros(geometry.shape, bool)}
    masks["liver"][1:4, 2:5, 1:3] = True
    masks["spleen"][2:4, 3:5, 1:3] = True

    def crop(seg: Dataset) -> None:
        """To the pixels from row 2 and column 1 on."""
        count = seg.Rows * seg.Columns * seg.NumberOfFrames
        bits = np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder="little")[:count]
        frames = bits.reshape(-1, seg.Rows, seg.Columns)[:, 2:, 1:]
        seg.PixelData = np.packbits(frames.ravel(), bitorder="little").tobytes()
        seg.PixelData += b"\0" * (len(seg.PixelData) % 2)
        seg.Rows, seg.Columns = frames.shape[1:]
        for groups in seg.PerFrameFunctionalGroupsSequence:
            position = groups.PlanePositionSequence[0]
            x, y, z = position.ImagePositionPatient
            position.ImagePositionPatient = [x + 0.8, y + 2 * 0.7, z]

    write_seg(site.folder / "seg.dcm", headers, masks, geometry, crop)
    site.run()
    found = site.labels()
    assert all(np.array_equal(found[name], mask) for name, mask in masks.items())


def test_a_second_import_finds_it_there(site: Site) -> None:
    headers, geometry = site.series()
    write_seg(site.folder / "seg.dcm", headers, label_map(geometry), geometry)
    site.run()
    assert fates(site.run()) == {"seg.dcm": (Fate.PRESENT, "")}


def elsewhere(seg: Dataset) -> None:
    seg.FrameOfReferenceUID = generate_uid()


def half_a_voxel(seg: Dataset) -> None:
    for groups in seg.PerFrameFunctionalGroupsSequence:
        position = groups.PlanePositionSequence[0]
        x, y, z = position.ImagePositionPatient
        position.ImagePositionPatient = [x + 0.4, y, z]


def outside(seg: Dataset) -> None:
    for groups in seg.PerFrameFunctionalGroupsSequence:
        position = groups.PlanePositionSequence[0]
        x, y, z = position.ImagePositionPatient
        position.ImagePositionPatient = [x, y, z + 25]


def fractional(seg: Dataset) -> None:
    seg.SegmentationType = "FRACTIONAL"


def without_places(seg: Dataset) -> None:
    del seg.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (elsewhere, "different frames of reference"),
        (half_a_voxel, "does not lie on voxels of its CT"),
        (outside, "does not lie on voxels of its CT"),
        (fractional, "fractional"),
        (without_places, "not a readable DICOM object"),
    ],
)
def test_what_does_not_fit_is_refused_and_its_ct_taken(
    site: Site, change: Callable[[Dataset], None], reason: str
) -> None:
    headers, geometry = site.series()
    write_seg(site.folder / "seg.dcm", headers, label_map(geometry), geometry, change)
    summary = site.run()
    fate, why = fates(summary)["seg.dcm"]
    assert fate == Fate.REFUSED
    assert reason in why
    assert len(summary.taken) == 1
    assert site.labels() == {}


def test_segments_that_are_no_organ_are_listed(site: Site) -> None:
    headers, geometry = site.series()

    def rename(seg: Dataset) -> None:
        liver, kidney = seg.SegmentSequence[1], seg.SegmentSequence[0]
        liver.SegmentLabel = "GREEN"
        liver.SegmentedPropertyTypeCodeSequence[0].CodeValue = "85756007"  # tissue
        kidney.SegmentLabel = "right kidney"  # and its code says the left one

    write_seg(site.folder / "seg.dcm", headers, label_map(geometry), geometry, rename)
    summary = site.run()
    assert site.labels() == {}
    assert "GREEN" in notes(summary)
    assert "right kidney: left out: its code (Kidney) and its name do not agree" in notes(summary)
    assert fates(summary)["seg.dcm"][0] == Fate.LEFT_OUT


def test_an_organ_is_known_by_its_code_or_by_its_name(site: Site) -> None:
    headers, geometry = site.series()

    def rename(seg: Dataset) -> None:
        liver, kidney = seg.SegmentSequence[1], seg.SegmentSequence[0]
        liver.SegmentLabel = "Segment_1"
        liver.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator = "SRT"
        liver.SegmentedPropertyTypeCodeSequence[0].CodeValue = "T-62000"
        kidney.SegmentLabel = "Left Kidney"
        kidney.SegmentedPropertyTypeCodeSequence[0].CodeValue = "91772007"  # organ

    write_seg(site.folder / "seg.dcm", headers, label_map(geometry), geometry, rename)
    site.run()
    assert set(site.labels()) == {"liver", "kidney_left"}


def test_two_segments_of_one_organ_are_left_out(site: Site) -> None:
    headers, geometry = site.series()
    twice = OrganScheme(
        organs=(
            ORGANS["liver"],
            Organ(name="liver_2", label=2, colour="#000000", snomed=ORGANS["liver"].snomed),
        )
    )
    mask = label_map(geometry) == LIVER
    write_seg(
        site.folder / "seg.dcm",
        headers,
        {"liver": mask, "liver_2": mask},
        geometry,
        organs=twice,
    )
    summary = site.run()
    assert site.labels() == {}
    assert "2 masks are called after liver" in notes(summary)


def test_a_list_pairs_a_volume_with_a_segmentation(site: Site) -> None:
    headers, geometry = site.series()
    labels = label_map(geometry)
    write_seg(site.folder / "seg.dcm", headers, labels, geometry)
    for file in (site.folder / "ct").iterdir():
        file.unlink()
    (site.folder / "ct").rmdir()
    (site.folder.parent / "ct.nii.gz").rename(site.folder / "scan.nii.gz")
    pairs = site.folder.parent / "pairs.csv"
    pairs.write_text("ct,label\nscan.nii.gz,seg.dcm\n")
    summary = site.run(pairs=pairs)
    assert np.array_equal(site.labels()["liver"], labels == LIVER)
    assert "by its geometry alone" in notes(summary)


def test_a_segmentation_of_another_series_is_named(site: Site) -> None:
    headers, geometry = site.series()

    def other(seg: Dataset) -> None:
        seg.FrameOfReferenceUID = generate_uid()
        seg.ReferencedSeriesSequence[0].SeriesInstanceUID = generate_uid()

    write_seg(site.folder / "seg.dcm", headers, label_map(geometry), geometry, other)
    fate, why = fates(site.run())["seg.dcm"]
    assert fate == Fate.LEFT_OUT
    assert "of a series that is not here" in why


# Structure sets


def structure_set(headers: list[Dataset], contours: dict[str, list[np.ndarray]]) -> Dataset:
    """Contours of each structure, ``[point, 3]`` in LPS mm."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = RTStructureSetStorage
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = generate_uid()
    made.Modality, made.SeriesInstanceUID = "RTSTRUCT", generate_uid()
    frame = Dataset()
    frame.FrameOfReferenceUID = headers[0].FrameOfReferenceUID
    made.ReferencedFrameOfReferenceSequence = [frame]
    made.StructureSetROISequence, made.ROIContourSequence = [], []
    for number, (name, polygons) in enumerate(contours.items(), 1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = number, name
        drawn.ReferencedROINumber, drawn.ContourSequence = number, []
        for points in polygons:
            contour = Dataset()
            contour.ContourGeometricType = "CLOSED_PLANAR" if len(points) > 1 else "POINT"
            contour.NumberOfContourPoints = len(points)
            contour.ContourData = [f"{v:.6f}" for v in points.ravel()]
            drawn.ContourSequence.append(contour)
        made.StructureSetROISequence.append(roi)
        made.ROIContourSequence.append(drawn)
    return made


def polygon(geometry: VolumeGeometry, corners: list[tuple[float, float]], k: float) -> np.ndarray:
    """Corners (i, j) in slice k, in LPS mm."""
    index = np.array([(i, j, k, 1.0) for i, j in corners])
    return (index @ geometry.matrix.T)[:, :3] * [-1, -1, 1]


def box(low_i: float, low_j: float, high_i: float, high_j: float) -> list[tuple[float, float]]:
    return [(low_i, low_j), (high_i, low_j), (high_i, high_j), (low_i, high_j)]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_contours_are_filled_at_voxel_centres_with_their_holes(
    site: Site, orientation: str
) -> None:
    headers, geometry = site.series(ORIENTATIONS[orientation])
    outer, hole = box(-0.5, 0.6, 4.4, 4.9), box(1.5, 1.5, 2.5, 2.5)
    keyhole = [(0.5, 0.5), (3.5, 0.5), (3.5, 4.5), (0.5, 4.5), (0.5, 0.5), (1.5, 1.5), (1.5, 3.5),
               (2.5, 3.5), (2.5, 1.5), (1.5, 1.5)]  # fmt: skip
    made = structure_set(
        headers,
        {
            "Liver": [polygon(geometry, outer, 1), polygon(geometry, hole, 1)],
            "Spleen": [polygon(geometry, keyhole, 2.04)],
            "BODY": [polygon(geometry, outer, 0)],
            "Isocenter": [np.zeros((1, 3))],
        },
    )
    made.save_as(site.folder / "seg_structures.dcm", enforce_file_format=True)
    summary = site.run()
    liver, spleen = np.zeros(geometry.shape, bool), np.zeros(geometry.shape, bool)
    liver[0:5, 1:5, 1] = True
    liver[2, 2, 1] = False
    spleen[1:4, 1:5, 2] = True
    spleen[2, 2:4, 2] = False
    found = site.labels()
    assert np.array_equal(found["liver"], liver)
    assert np.array_equal(found["spleen"], spleen)
    assert "no organ of this atlas were left out: BODY" in notes(summary)


def test_a_contour_between_two_slices_is_refused(site: Site) -> None:
    headers, geometry = site.series()
    made = structure_set(headers, {"liver": [polygon(geometry, box(0, 0, 3, 3), 1.5)]})
    made.save_as(site.folder / "seg_structures.dcm", enforce_file_format=True)
    fate, why = fates(site.run())["seg_structures.dcm"]
    assert fate == Fate.REFUSED
    assert "does not lie in a slice of its CT" in why


# Real files


def test_a_real_segmentation_equals_its_nrrd(site: Site, shared_data: Path) -> None:
    """dcmqi's liver on three slices, and what dcmqi converts it to."""
    data = shared_data / "dcmqi" / "data" / "segmentations"
    for file in (*data.glob("ct-3slice/*.dcm"), data / "liver.dcm", data / "partial_overlaps.dcm"):
        (site.folder / file.name).write_bytes(file.read_bytes())
    summary = site.run()
    assert {f.source: f.fate for f in summary.files}["liver.dcm"] == Fate.TAKEN
    expected = read_label(data / "liver_seg.nrrd")
    import_series(sorted(data.glob("ct-3slice/*.dcm")), site.folder.parent / "ct.nii.gz")
    grid = read_volume(site.folder.parent / "ct.nii.gz").geometry
    ours = grid.axis_map.to_canonical(site.labels()["liver"])
    theirs = expected.geometry.axis_map.to_canonical(expected.voxels) > 0
    assert np.array_equal(ours, theirs)
    assert "DARK_BLUE" in notes(summary)


def test_a_real_structure_set_without_an_organ_is_named(site: Site, shared_data: Path) -> None:
    headers, _ = site.series()
    source = shared_data / "pydicom/src/pydicom/data/test_files/rtstruct.dcm"
    found = dcmread(source, force=True)
    found.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID = headers[0].FrameOfReferenceUID
    found.save_as(site.folder / "seg_real.dcm", implicit_vr=True, little_endian=True)
    fate, why = fates(site.run())["seg_real.dcm"]
    assert fate in (Fate.LEFT_OUT, Fate.REFUSED)
    assert why
