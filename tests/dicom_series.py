"""DICOM series of a few small slices, as a scanner writes them or as nobody should."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

ROWS, COLUMNS, SLICES = 6, 5, 4
SERIES = generate_uid()
Change = Callable[[Dataset, int], None]


def stored(k: int) -> np.ndarray:
    """Stored numbers of slice k, ``[row, column]``: distinct everywhere."""
    rows, columns = np.meshgrid(np.arange(ROWS), np.arange(COLUMNS), indexing="ij")
    return (columns + 10 * rows + 100 * k).astype(np.int16)


def write_series(
    folder: Path, change: Change = lambda dataset, k: None, slices: int = SLICES
) -> list[Path]:
    """A CT series with gaps of 2.5 mm, in shuffled file order.

    Args:
        change: called with each data set and the number of its slice before it is saved.
    """
    folder.mkdir(exist_ok=True)
    files = []
    for k in range(slices):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
        dataset.PatientName, dataset.SeriesInstanceUID = "Somebody^Secret", SERIES
        dataset.Modality, dataset.SliceThickness = "CT", 3.0
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = ROWS, COLUMNS, 1
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 1
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.ImagePositionPatient = [-20.0, -30.0, 100.0 + 2.5 * k]
        dataset.PixelSpacing = [0.7, 0.8]  # between rows, between columns
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        dataset.PixelData = stored(k).tobytes()
        change(dataset, k)
        files.append(folder / f"{(k * 7) % 11 + k // 11 * 11:02d}.dcm")
        dataset.save_as(files[-1], enforce_file_format=True)
    return files


def in_a_study(change: Change = lambda dataset, k: None) -> Change:
    """`change` with the identifiers that an archive asks for and objects refer to."""
    study, frame = generate_uid(), generate_uid()

    def changed(dataset: Dataset, k: int) -> None:
        dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = study, frame
        dataset.PatientID, dataset.InstanceNumber = "P1", k + 1
        change(dataset, k)

    return changed


def _place(dataset: Dataset, k: int, row: list[float], column: list[float], gap: float) -> None:
    normal = np.cross(row, column)
    dataset.ImageOrientationPatient = [*row, *column]
    dataset.ImagePositionPatient = [
        round(float(v), 6) for v in np.array([-20.0, -30.0, 100.0]) + gap * k * normal
    ]


def _oblique(dataset: Dataset, k: int) -> None:
    c, s = np.cos(0.3), np.sin(0.3)
    _place(dataset, k, [c, s, 0.0], [-s * c, c * c, s], 3.1)
    dataset.PixelSpacing = [0.5, 1.9]


ORIENTATIONS: dict[str, Change] = {
    "axial": lambda dataset, k: None,
    "reversed": lambda dataset, k: _place(dataset, SLICES - k, [1, 0, 0], [0, 1, 0], 2.5),
    "feet first, prone": lambda dataset, k: _place(dataset, k, [-1, 0, 0], [0, -1, 0], -2.5),
    "coronal": lambda dataset, k: _place(dataset, k, [1, 0, 0], [0, 0, -1], 4.0),
    "sagittal": lambda dataset, k: _place(dataset, k, [0, 1, 0], [0, 0, -1], 1.25),
    "oblique, anisotropic": _oblique,
}
"""Ways a scanner may lay its slices."""


def jpeg_lossless(pixels: np.ndarray) -> bytes:
    """A stream of JPEG lossless (process 14, first-order prediction) of 16-bit `pixels`.

    Each category has a code of five bits, which is its number.
    """
    values = pixels.astype(np.int64)
    before = np.empty_like(values)
    before[:, 1:], before[1:, 0], before[0, 0] = values[:, :-1], values[:-1, 0], 1 << 15
    text = ""
    for difference in (((values - before + 32768) & 0xFFFF) - 32768).ravel().tolist():
        category = abs(difference).bit_length()
        text += f"{category:05b}"
        if 0 < category < 16:
            bits = difference if difference > 0 else difference + (1 << category) - 1
            text += f"{bits:0{category}b}"
    text += "1" * (-len(text) % 8)
    coded = bytes(int(text[n : n + 8], 2) for n in range(0, len(text), 8))

    def part(marker: int, content: bytes) -> bytes:
        return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content

    rows, columns = (n.to_bytes(2, "big") for n in pixels.shape)
    frame = bytes([16]) + rows + columns + bytes([1, 1, 0x11, 0])
    table = bytes([0, 0, 0, 0, 0, 17] + [0] * 11) + bytes(range(17))
    scan = bytes([1, 1, 0, 1, 0, 0])
    escaped = coded.replace(b"\xff", b"\xff\0")
    parts = part(0xC3, frame) + part(0xC4, table) + part(0xDA, scan)
    return b"\xff\xd8" + parts + escaped + b"\xff\xd9"
