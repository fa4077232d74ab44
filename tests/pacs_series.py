"""CT series as a hospital's PACS has them, with the patient's name wherever there is room."""

from __future__ import annotations

import lzma
import tarfile
from pathlib import Path

import numpy as np
from atlas_core.phantoms import PhantomGrid, make_phantom
from pydicom import Dataset, dcmread
from pydicom.datadict import DicomDictionary, keyword_for_tag
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from scipy.ndimage import gaussian_filter

NAME = "Zweigeltova"
COLUMNS, ROWS = 56, 48
NOT_NAMED = ("SpecificCharacterSet", "ConversionType", "BurnedInAnnotation")
"""Attributes that would change what an image is."""

TEXTS = ("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT")


def hospital_series(
    slices: int = 12, seed: int = 0, study: str | None = None, patient: str = "4711"
) -> list[Dataset]:
    """A body of smooth blobs in air, slices of 3 mm; ready to be sent or saved."""
    random = np.random.default_rng(seed)
    tissue = gaussian_filter(random.normal(size=(slices, ROWS, COLUMNS)), 3.0)
    hu = 60.0 + 120.0 * tissue / tissue.std()
    hu[:, :4], hu[:, -4:], hu[:, :, :4], hu[:, :, -4:] = (-1000.0,) * 4
    return _series(np.round(hu).astype("<i2"), (3.0, 3.0, 3.0), study, patient)


def phantom_series(seed: int = 0) -> list[Dataset]:
    """A phantom, for the demo models: in a body of blobs they find no organ."""
    phantom = make_phantom(seed, grid=PhantomGrid(columns=112, slice_mm=3.0, axis_codes="LPS"))
    x, y, z = (round(step, 4) for step in phantom.geometry.spacing_mm)  # 16 characters at most
    return _series(phantom.ct.transpose(2, 1, 0).astype("<i2"), (z, y, x))


def _series(
    hu: np.ndarray,
    spacing_mm: tuple[float, float, float],
    study: str | None = None,
    patient: str = "4711",
) -> list[Dataset]:
    """Voxels ``[z, y, x]``, in millimetres as far apart, as axial slices of one series."""
    study, series, frame = study or generate_uid(), generate_uid(), generate_uid()
    along, *across = spacing_mm
    slices = []
    for k, voxels in enumerate(hu):
        one = _slice(voxels, study, series, frame, patient)
        one.InstanceNumber, one.SliceThickness = k + 1, along
        one.ImagePositionPatient, one.PixelSpacing = [0.0, 0.0, along * k], across
        slices.append(one)
    return slices


def _slice(hu: np.ndarray, study: str, series: str, frame: str, patient: str) -> Dataset:
    one = Dataset()
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID = CTImageStorage
    one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID = generate_uid()
    one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = study, series, frame
    one.PatientName, one.PatientID, one.PatientBirthDate = f"{NAME}^Anna", patient, "19500101"
    one.PatientSex, one.ReferringPhysicianName = "F", f"{NAME}^Doktor"
    one.StudyDate = one.SeriesDate = one.AcquisitionDate = one.ContentDate = "20240301"
    one.StudyTime = one.SeriesTime = one.AcquisitionTime = one.ContentTime = "101112"
    one.AccessionNumber, one.StudyID, one.BodyPartExamined = "A1", "S1", "ABDOMEN"
    one.Modality, one.Manufacturer = "CT", "Maker"
    one.PositionReferenceIndicator = ""
    one.SeriesNumber, one.AcquisitionNumber = 2, 1
    one.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    one.Rows, one.Columns, one.SamplesPerPixel = *hu.shape, 1
    one.PhotometricInterpretation = "MONOCHROME2"
    one.BitsAllocated = one.BitsStored = 16
    one.HighBit, one.PixelRepresentation = 15, 1
    one.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    one.RescaleSlope, one.RescaleIntercept, one.RescaleType = 1, 0, "HU"
    one.KVP = 120
    one.PixelData = hu.tobytes()
    return one


def plant_names(image: Dataset) -> int:
    """Put the name into every text attribute of the standard that the image lacks, also nested and
    in private ones; returns how many."""
    planted = 0
    for tag, (vr, _, _, retired, keyword) in DicomDictionary.items():
        if keyword in NOT_NAMED:
            continue
        if vr not in TEXTS or retired or tag >> 16 in (0x0000, 0x0002, 0x0004) or tag in image:
            continue
        image.add_new(tag, vr, NAME.upper()[:16] if vr == "CS" else NAME)
        planted += 1
    nested = Dataset()
    nested.PatientName, nested.ImageComments = NAME, NAME
    nested.private_block(0x0011, NAME, create=True).add_new(1, "LO", NAME)
    deeper = Dataset()
    deeper.ReferringPhysicianName, deeper.PatientID = NAME, NAME
    nested.ReferencedImageSequence = [deeper]
    image.SourceImageSequence = [nested]
    image.private_block(0x0011, f"{NAME} Medical", create=True).add_new(1, "LO", NAME)
    image.add_new((0x6000, 0x4000), "LT", NAME)
    image.add_new((0x0033, 0x1001), "UN", NAME.encode())
    image.file_meta.SourceApplicationEntityTitle = NAME
    assert keyword_for_tag(0x00104000) == "PatientComments" and "PatientComments" in image
    return planted + 7


def real_series(data: Path, folder: Path) -> list[Path]:
    """The files of CRLM-CT-1004 (mirp), 41 slices, unpacked to `folder`."""
    with (
        lzma.open(data / "mirp" / "CRLM-CT-1004.tar.xz") as packed,
        tarfile.open(fileobj=packed) as archive,
    ):
        archive.extractall(folder, filter="data")
    return sorted(folder.rglob("image/*.dcm"))


def read_all(files: list[Path]) -> list[Dataset]:
    return [dcmread(file) for file in files]
