"""What every object of ours says of itself: who made it, when, and under which UIDs.

Nothing is random and nothing asks the clock: the same labels for the same series give the same
object to the byte, so that sending it again is not a second one.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version
from typing import Any, Final

from pydicom import Dataset

from atlas_core.errors import AtlasError, UnsupportedVolume

MANUFACTURER: Final = "Atlas Loop"
SERIES_NUMBER: Final = 9000
"""Far above a scanner's own; a series' identity is its UID."""

_NAMESPACE: Final = uuid.UUID("6b1a7f3e-0c4d-5d0e-9a53-6a7d1f5c2b90")


def uid_of(*parts: object) -> str:
    """A UID that the same `parts` always get: a name-based UUID under 2.25 (PS3.5, B.2)."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, '|'.join(map(str, parts))).int}"


def sha256_of(*contents: Any) -> str:
    """SHA-256 of texts and arrays."""
    digest = hashlib.sha256()
    for content in contents:
        if isinstance(content, str):
            digest.update(content.encode())
        else:
            for piece in content:  # an array's first axis: no second copy of all of it
                digest.update(piece.tobytes())
    return digest.hexdigest()


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
    for keyword in ("InstanceCreationDate", "ContentDate", "SeriesDate"):
        if keyword in dataset:
            setattr(dataset, keyword, day)
    for keyword in ("InstanceCreationTime", "ContentTime", "SeriesTime"):
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
