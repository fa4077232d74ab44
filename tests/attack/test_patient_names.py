"""A patient's name in everything that is imported: path, file names, headers, tags. It leaves in
nothing that the product writes for others, and stands inside in few places that are known.
"""

from __future__ import annotations

import gzip
import json
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from atlas_core.catalog import Catalog
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.store import CaseStore
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from small_cts import SHAPE, SPACING_MM, write_small_cts
from stack import Stack
from written_texts import texts

pytestmark = pytest.mark.stack

NAME = "Zweigeltova"
FULL_NAME = f"{NAME}^Anna_19500101"
DATASET = "hospital"

MAY_HOLD_IT = {
    # Column `source`, by which the site finds the file of a case again. The catalog is as private
    # as the CTs themselves; a backup of it too.
    "home/catalog.sqlite",
    "home/catalog.sqlite-wal",
    "backup/catalog/cases.jsonl",
    # Written on request for the site alone, owner-only.
    "private.csv",
}

COMMANDS = (
    ("import", "{named}", "--dataset", DATASET),
    ("score",),
    ("assemble",),
    (
        *("release", "{out}/release", "--cts", "copy", "--accept", "unknown", "--leave-out"),
        *(
            "--dataset",
            DATASET,
            "--patients",
            "{patients}",
            "--mapping",
            "{out}/private.csv",
        ),
    ),
    ("release", "{out}/raw", "--format", "nnunet", "--accept", "unknown", "--leave-out"),
    ("report", "--output", "{out}/report.html"),
    ("backup", "{out}/backup"),
)

RUN = """
import json, sys
from pathlib import Path
from atlas_core.catalog import Catalog
from atlas_flows.cli import app
from atlas_flows.settings import Places
from typer.testing import CliRunner
commands, patients, name = json.load(sys.stdin)
for command in commands:
    done = CliRunner().invoke(app, command)
    print(command, done.output, done.exception, file=sys.stderr)
    if done.exit_code:
        sys.exit(done.exit_code)
    if command[0] == "import":
        with Catalog.open(Places.read().catalog_url) as catalog:
            rows = [f"{case.id},{name}" for case in catalog.cases()]
        Path(patients).write_text("\\n".join(["case,patient", *rows]))
"""


def write_named(folder: Path) -> None:
    """A NIfTI, a case with masks of every organ, and a DICOM series; all named in every way."""
    write_small_cts(folder / "plain", 3, seed=23)
    loose, case, scans = (folder / "plain" / f"case_{n}.nii.gz" for n in range(3))
    named = folder / FULL_NAME
    (named / f"case {NAME}" / "segmentations").mkdir(parents=True)
    _with_name(nib.load(loose), named / f"{FULL_NAME}.nii.gz")
    _with_name(nib.load(case), named / f"case {NAME}" / "ct.nii.gz")
    _write_dicom(nib.load(scans).get_fdata(), named / f"{NAME} dicom")
    affine = nib.load(case).affine
    for number, organ in enumerate(ABDOMEN_ATLAS):
        mask = np.zeros(SHAPE, np.uint8)
        mask[10 : 20 + number, 10:20, 10 + number : 20] = 1
        path = named / f"case {NAME}" / "segmentations" / f"{organ.name}.nii.gz"
        _with_name(nib.Nifti1Image(mask, affine), path)
    for path in (folder / "plain").iterdir():
        path.unlink()


def _with_name(image: nib.Nifti1Image, path: Path) -> None:
    """In every text of the header, in an extension, and in the name that gzip keeps."""
    named = nib.Nifti1Image(np.asarray(image.dataobj), image.affine)
    for field in ("descrip", "db_name", "aux_file", "intent_name"):
        named.header[field] = FULL_NAME[: named.header[field].dtype.itemsize]
    named.header.extensions.append(nib.nifti1.Nifti1Extension("comment", FULL_NAME.encode()))
    with path.open("wb") as file, gzip.GzipFile(f"{NAME}.nii", "wb", fileobj=file) as packed:
        packed.write(named.to_bytes())


def _write_dicom(hu: np.ndarray, folder: Path) -> None:
    folder.mkdir()
    series = generate_uid()
    for k in range(SHAPE[2]):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
        dataset.PatientName = dataset.PatientID = dataset.PatientComments = FULL_NAME
        dataset.SeriesDescription = dataset.StudyDescription = dataset.ProtocolName = FULL_NAME
        dataset.InstitutionName = dataset.OtherPatientNames = FULL_NAME
        dataset.private_block(0x0011, f"{NAME} Medical", create=True).add_new(1, "LO", FULL_NAME)
        dataset.SeriesInstanceUID, dataset.Modality = series, "CT"
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = SHAPE[1], SHAPE[0], 1
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 1
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.ImagePositionPatient = [0.0, 0.0, SPACING_MM[2] * k]
        dataset.PixelSpacing, dataset.SliceThickness = list(SPACING_MM[:2]), SPACING_MM[2]
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
        dataset.PixelData = hu[:, :, k].T.astype("<i2").tobytes()
        dataset.save_as(folder / f"{NAME}_{k}.dcm", enforce_file_format=True)


def holds_the_name(path: Path) -> bool:
    wanted = [NAME.lower().encode(coding) for coding in ("utf-8", "utf-16-le")]
    return any(name in text.lower() for text in texts(path) for name in wanted)


@pytest.fixture(scope="module")
def written(prefect_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of all that the product wrote, with the home of the stack in it."""
    named, out = tmp_path_factory.mktemp("named"), tmp_path_factory.mktemp("written")
    write_named(named)
    (out / "home").symlink_to(prefect_stack.home)
    places = {"named": named / FULL_NAME, "out": out, "patients": named / "patients.csv"}
    commands = [[word.format(**places) for word in command] for command in COMMANDS]
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps([commands, str(places["patients"]), FULL_NAME]),
        env=prefect_stack.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    yield out
    store = CaseStore(prefect_stack.settings.store)
    with Catalog.open(prefect_stack.settings.catalog_url) as catalog:
        for case in catalog.cases(DATASET):
            catalog.delete_case(case.id)
            store.delete_case(case.id)


def files(folder: Path) -> dict[str, Path]:
    inside = [*folder.rglob("*"), *(folder / "home").resolve().rglob("*")]
    home = (folder / "home").resolve()
    return {
        (
            f"home/{path.relative_to(home)}"
            if path.is_relative_to(home)
            else path.relative_to(folder).as_posix()
        ): path
        for path in inside
        if path.is_file() and not path.is_symlink()
    }


def test_everything_came_in(prefect_stack: Stack, written: Path) -> None:
    """Else the search below would find nothing in nothing."""
    with Catalog.open(prefect_stack.settings.catalog_url) as catalog:
        cases = catalog.cases(DATASET)
        assert len(cases) == 3
        assert all(NAME in case.source for case in cases)
        assert not any(NAME.lower() in case.id.lower() for case in cases)
    assert holds_the_name(prefect_stack.home / "catalog.sqlite") or holds_the_name(
        prefect_stack.home / "catalog.sqlite-wal"
    )
    assert list((written / "release").glob("BDMAP_*/ct.nii.gz"))
    assert stat.S_IMODE((written / "private.csv").stat().st_mode) == 0o600
    assert NAME in (written / "private.csv").read_text()


def test_the_name_is_nowhere_but_where_it_may_be(written: Path) -> None:
    found = files(written)
    kinds = ("release/", "raw/", "report.html", "backup/", "home/store/", "home/prefect/")
    assert all(any(name.startswith(kind) for name in found) for kind in kinds)
    assert {name for name in found if NAME.lower() in name.lower()} == set()
    assert {name for name, path in found.items() if holds_the_name(path)} <= MAY_HOLD_IT
