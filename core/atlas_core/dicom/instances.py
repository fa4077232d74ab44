"""What every object of ours says of itself: who made it, when, and under which UIDs.

Nothing is random and nothing asks the clock: the same labels for the same series give the same
object to the byte, so that sending it again is not a second one.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version
from io import BytesIO
from typing import Any, Final

from numpy.typing import NDArray
from pydicom import Dataset

from atlas_core.errors import AtlasError, UnsupportedVolume

MANUFACTURER: Final = "Atlas Loop"
SERIES_NUMBER: Final = 9000
"""Far above a scanner's own; a series' identity is its UID."""

_NAMESPACE: Final = uuid.UUID("6b1a7f3e-0c4d-5d0e-9a53-6a7d1f5c2b90")


def uid_of(*parts: str | NDArray[Any]) -> str:
    """A UID that the same `parts` always get: a name-based UUID under 2.25 (PS3.5, B.2)."""
    texts = [one if isinstance(one, str) else _sha256(one) for one in parts]
    return f"2.25.{uuid.uuid5(_NAMESPACE, '|'.join(texts)).int}"


def _sha256(array: NDArray[Any]) -> str:
    digest = hashlib.sha256(str(array.shape).encode())
    for piece in array:  # along the first axis: no second copy of all of it
        digest.update(piece.tobytes())
    return digest.hexdigest()


def identity_of(
    source: Dataset, description: str, created_at: datetime, content: Sequence[object]
) -> str:
    """What makes an object another one, besides its voxels."""
    series = source.SeriesInstanceUID
    return repr([version("atlasloop"), series, description, created_at.isoformat(), *content])


def study_of(source: Dataset) -> dict[str, Any]:
    """Arguments of `highdicom.base.SOPClass` that say whose study it is."""
    return {
        "study_instance_uid": source.StudyInstanceUID,
        "patient_id": source.PatientID,
        "patient_name": source.PatientName,
        "patient_birth_date": source.PatientBirthDate,
        "patient_sex": source.PatientSex,
        "accession_number": source.AccessionNumber,
        "study_id": source.StudyID,
        "study_date": source.StudyDate,
        "study_time": source.StudyTime,
        "referring_physician_name": source.ReferringPhysicianName,
        "specific_character_set": source.get("SpecificCharacterSet"),
    }


def equipment() -> dict[str, Any]:
    """Arguments of every highdicom constructor."""
    return {
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": MANUFACTURER,
        "software_versions": version("atlasloop"),
        "device_serial_number": "none",
        "series_number": SERIES_NUMBER,
        "instance_number": 1,
    }


def dated(dataset: Dataset, created_at: datetime) -> Dataset:
    """`dataset` with `created_at` wherever it says when it was made, and a UID of its own for
    its dimensions, in place of the clock's and chance's."""
    day, time = created_at.strftime("%Y%m%d"), created_at.strftime("%H%M%S")
    for keyword in (
        "InstanceCreationDate",
        "ContentDate",
        "SeriesDate",
        "StructureSetDate",
    ):
        if keyword in dataset:
            setattr(dataset, keyword, day)
    for keyword in (
        "InstanceCreationTime",
        "ContentTime",
        "SeriesTime",
        "StructureSetTime",
    ):
        if keyword in dataset:
            setattr(dataset, keyword, time)
    for item in dataset.get("ContributingEquipmentSequence") or ():
        item.ContributionDateTime = day + time
    dimensions = uid_of(dataset.SOPInstanceUID, "dimensions")
    for item in _dimensions(dataset):
        item.DimensionOrganizationUID = dimensions
    return dataset


def _dimensions(dataset: Dataset) -> Iterable[Dataset]:
    for keyword in ("DimensionOrganizationSequence", "DimensionIndexSequence"):
        yield from dataset.get(keyword) or ()


@contextmanager
def header_carried_over() -> Iterator[None]:
    """Raises:
    UnsupportedVolume: the library cannot take over what the source's header says.
    """
    try:
        yield
    except AtlasError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # may quote the header
        raise UnsupportedVolume(
            "patient or study attributes of the source series are malformed",
            got=type(error).__name__,
            remedy="take the series as the scanner or the archive sent it",
        ) from error


def as_bytes(dataset: Dataset) -> bytes:
    """`dataset` as a DICOM file."""
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
