"""Series and volumes damaged anyhow: the CT beside them is imported, and no error is unforeseen."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from atlas_core.catalog import Catalog
from atlas_core.importing import import_folder
from atlas_core.store import CaseStore
from dicom_series import write_series
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydicom.datadict import tag_for_keyword

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

FUZZED = settings(deadline=None, max_examples=settings.default.max_examples // 2)
"""An import takes some 30 ms; another profile of Hypothesis gives more examples."""


@dataclass(frozen=True)
class Damage:
    """One change of a file's bytes.

    Attributes:
        place: where, as a share of its length.
        removed: bytes that go.
        put: bytes that come instead.
    """

    place: float
    removed: int
    put: bytes

    def __call__(self, content: bytes) -> bytes:
        start = int(self.place * len(content))
        return content[:start] + self.put + content[start + self.removed :]


DAMAGES = st.lists(
    st.builds(
        Damage,
        st.floats(0, 1),
        st.sampled_from([0, 1, 2, 4, 4, 8, 1000]),
        st.binary(max_size=8) | st.sampled_from([b"\xff" * 4, bytes(4), b"-1e308", b"nan"]),
    ),
    min_size=1,
    max_size=6,
)


@dataclass(frozen=True)
class Value:
    """Another value, and representation, of an attribute of a DICOM file.

    Attributes:
        keyword: of the attribute; where the file lacks it, it stays so.
        representation: two letters; None: as it is.
        value: its bytes.
    """

    keyword: str
    representation: bytes | None
    value: bytes

    def __call__(self, content: bytes) -> bytes:
        tag = tag_for_keyword(self.keyword) or 0
        place = content.find(struct.pack("<HH", tag >> 16, tag & 0xFFFF)) + 4
        if place < 4:
            return content
        kind = self.representation or content[place : place + 2]
        (length,) = struct.unpack_from("<H", content, place + 2)
        changed = kind + struct.pack("<H", len(self.value)) + self.value
        return content[:place] + changed + content[place + 4 + length :]


VALUES = st.lists(
    st.builds(
        Value,
        st.sampled_from([
            "BitsStored", "Columns", "ImageOrientationPatient", "ImagePositionPatient", "Modality",
            "NumberOfFrames", "PixelRepresentation", "PixelSpacing", "RescaleIntercept",
            "RescaleSlope", "Rows", "SamplesPerPixel", "SeriesInstanceUID", "TransferSyntaxUID",
        ]),
        st.none() | st.sampled_from([b"US", b"IS", b"DS", b"UN", b"SS", b"FD", b"AT", b"ZZ"]),
        st.binary(max_size=9) | st.sampled_from([
            bytes(2), b"\xff\xff", b"\x06\x00\x06\x00", b"abc ", b"-1", b"1e308", b"nan",
            b"1\\1\\1",
        ]),
    ),
    min_size=1,
    max_size=2,
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A folder with one good CT, and where it is imported to."""

    folder: Path
    catalog: Catalog
    store: CaseStore

    def check(self) -> None:
        """Import; the good CT is there, and nothing was unforeseen."""
        summary = import_folder(self.folder, "site", catalog=self.catalog, store=self.store)
        assert "good.nii.gz" in {case.source for case in (*summary.taken, *summary.present)}
        notes = (*summary.refused, *summary.skipped, *summary.warnings)
        assert all(note.source.isprintable() and note.reason.isprintable() for note in notes)
        assert not [note.reason for note in notes if "report it" in note.reason]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("fuzzed")
    (root / "in").mkdir()
    _write_ct(root / "in" / "good.nii.gz", 0)
    with Catalog.open(f"sqlite:///{root}/catalog.sqlite") as catalog:
        yield Place(root / "in", catalog, CaseStore(root / "store"))


@pytest.fixture(scope="module")
def series(place: Place) -> dict[Path, bytes]:
    """The files of a valid series, and what they hold."""
    return {file: file.read_bytes() for file in write_series(place.folder / "series")}


@pytest.fixture(scope="module")
def volumes(place: Place) -> dict[Path, bytes]:
    """A valid CT and its label map, not compressed, and what they hold."""
    case = place.folder / "case"
    case.mkdir()
    _write_ct(case / "ct.nii", 1)
    nib.save(
        nib.Nifti1Image(np.dstack([np.eye(12, dtype=np.uint8)] * 2), np.eye(4)),
        case / "combined_labels.nii",
    )
    return {file: file.read_bytes() for file in case.iterdir()}


def _write_ct(path: Path, seed: int) -> None:
    voxels = np.random.default_rng(seed).integers(-1000, 1000, (12, 12, 2)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)


@FUZZED
@given(DAMAGES)
@example([Damage(0.55, 4, b"\xff\xff\xff\xff")])
@example([Damage(1.0, 0, b"\0")])
def test_a_damaged_series(place: Place, series: dict[Path, bytes], damages: list[Damage]) -> None:
    _write(series, damages)
    place.check()


@FUZZED
@given(VALUES)
@example([Value("BitsStored", None, bytes(2))])
@example([Value("BitsStored", None, b"\xff\xff")])
@example([Value("Rows", None, b"\x06\x00\x06\x00")])
@example([Value("Rows", None, b"\x06")])
@example([Value("Rows", b"ZZ", b"\x06\x00")])
@example([Value("SamplesPerPixel", b"IS", b"abc ")])
def test_a_series_of_malformed_attributes(
    place: Place, series: dict[Path, bytes], values: list[Value]
) -> None:
    _write(series, values)
    place.check()


@FUZZED
@given(DAMAGES)
@example([Damage(0.05, 2, b"\xff\x7f")])
def test_a_damaged_volume(place: Place, volumes: dict[Path, bytes], damages: list[Damage]) -> None:
    _write(volumes, damages)
    place.check()


def _write(files: dict[Path, bytes], damages: Sequence[Damage | Value]) -> None:
    """All files with the same damages, so that a series stays one."""
    for file, content in files.items():
        for damage in damages:
            content = damage(content)
        file.write_bytes(content)
