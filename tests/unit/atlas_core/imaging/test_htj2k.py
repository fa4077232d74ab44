"""High-throughput JPEG 2000, as archives send it by DICOMweb: slices that OpenJPH encoded.

The decoders that are at hand write none, so the code streams stand here.
"""

from __future__ import annotations

from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
from atlas_core.errors import CorruptFile
from atlas_core.imaging import read_volume
from atlas_core.imaging.dicom_reader import write_series
from dicom_series import COLUMNS, ROWS
from dicom_series import write_series as write_slices
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL

STREAMS = (
    (
        "/0//UQApQAAAAAAFAAAABgAAAAAAAAAAAAAABQAAAAYAAAAAAAAAAAABDwEB/1AACAACAAAADP9SAAwAAgAB"
        "AAUEBEAB/1wAEyCQmJigmJigmJigmJiYkJCY/2QAFgABT3BlbkpQSCBWZXIgMC45LjAu/5AACgAAAAAASAAB"
        "/5PAABMA/3cFB3QAAADAAAkgAASg/idzANQAh3QAwAAI4AAEYIADAADjAMAAEcAAE4DAAwBSysHJ/rUA/9k="
    ),
    (
        "/0//UQApQAAAAAAFAAAABgAAAAAAAAAAAAAABQAAAAYAAAAAAAAAAAABDwEB/1AACAACAAAADP9SAAwAAgAB"
        "AAUEBEAB/1wAEyCQmJigmJigmJigmJiYkJCY/2QAFgABT3BlbkpQSCBWZXIgMC45LjAu/5AACgAAAAAASAAB"
        "/5PAABMAN/cFB3QAAADAAAkgAASg/idzANQAh3QAwAAI4AAEYIADAADjAMAAEcAAE4DAAwBSysHJ/rUA/9k="
    ),
    (
        "/0//UQApQAAAAAAFAAAABgAAAAAAAAAAAAAABQAAAAYAAAAAAAAAAAABDwEB/1AACAACAAAADP9SAAwAAgAB"
        "AAUEBEAB/1wAEyCQmJigmJigmJigmJiYkJCY/2QAFgABT3BlbkpQSCBWZXIgMC45LjAu/5AACgAAAAAASAAB"
        "/5PAABMAb/YFB3QAAADAAAkgAASg/idzANQAh3QAwAAI4AAEYIADAADjAMAAEcAAE4DAAwBSysHJ/rUA/9k="
    ),
)
"""By ``ojph_compress -reversible true`` (OpenJPH 0.9.0), 16 bits, unsigned."""


def stored(k: int) -> np.ndarray:
    rows, columns = np.meshgrid(np.arange(ROWS), np.arange(COLUMNS), indexing="ij")
    return 1000 + columns + 10 * rows + 100 * k


def packed(folder: Path, syntax: str, cut: int | None = None) -> list[Path]:
    def change(dataset: Dataset, k: int) -> None:
        dataset.PixelRepresentation = 0
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.PixelData = encapsulate([b64decode(STREAMS[k])[:cut]])
        dataset["PixelData"].is_undefined_length = True

    return write_slices(folder, change, len(STREAMS))


@pytest.mark.parametrize("syntax", [HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K])
def test_it_is_read_without_loss(tmp_path: Path, syntax: str) -> None:
    write_series(packed(tmp_path / "series", syntax), tmp_path / "ct.nii.gz")
    voxels = read_volume(tmp_path / "ct.nii.gz").voxels
    for k in range(len(STREAMS)):
        assert np.array_equal(voxels[:, :, k].T, stored(k) - 1024)


def test_a_stream_that_is_cut_is_no_slice(tmp_path: Path) -> None:
    with pytest.raises(CorruptFile, match="decoded"):
        write_series(packed(tmp_path / "series", HTJ2KLossless, 120), tmp_path / "ct.nii.gz")
