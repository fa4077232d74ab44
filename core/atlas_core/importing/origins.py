"""What a scan is called in DICOM, and which cases are the same scan, or made of it, by that."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Final

from atlas_core.catalog import Catalog, sharing_uids
from atlas_core.errors import AtlasError
from atlas_core.imaging.dicom_reader import DicomSeries, source_instances
from atlas_core.importing.candidates import Candidate, stem_of
from atlas_core.importing.label_names import read_json
from atlas_core.records import UidRole
from atlas_core.regular_files import read_small

INSTANCES: Final = 8
"""SOP instances that stand for a series, those of the least checksums: of a copy that lost half
of its slices, one is among them except in one of 256 cases."""

MAX_SIDECAR_BYTES: Final = 1 << 20

UID: Final = re.compile(r"[0-9.]{1,64}( pass \d+)?")

Uids = dict[UidRole, frozenset[str]]


def uids_of(candidate: Candidate) -> Uids:
    """UIDs of the scan of a candidate; none where its files say none."""
    if isinstance(candidate.ct, Path):
        return _of_sidecar(candidate.ct)
    return _of_series(candidate.ct)


def _of_series(series: DicomSeries) -> Uids:
    named = [series.uid] if UID.fullmatch(series.uid) else []
    sources = source_instances(series.files) if series.derived else frozenset()
    frame, study = ({uid} if uid else set() for uid in (series.frame, series.study))
    return {
        UidRole.OWN: frozenset([*named, *_least(series.instances)]),
        # What is derived lies in the frame of reference of its source.
        UidRole.SOURCE: frozenset([*_least(sources), *(frame if series.derived else ())]),
        UidRole.SHARED: frozenset(study if series.derived else study | frame),
    }


def _of_sidecar(volume: Path) -> Uids:
    """Of the JSON file that dcm2niix writes beside a volume."""
    found: dict[str, object] = {}
    file = volume.with_name(f"{stem_of(volume)}.json")
    if file.is_file():
        with suppress(AtlasError):
            content = read_json(read_small(file, MAX_SIDECAR_BYTES), file.name)
            found = content if isinstance(content, dict) else {}
    own, shared = (
        frozenset(uid for uid in [found.get(name)] if isinstance(uid, str) and UID.fullmatch(uid))
        for name in ("SeriesInstanceUID", "StudyInstanceUID")
    )
    return {UidRole.OWN: own, UidRole.SHARED: shared}


def _least(uids: Iterable[str]) -> list[str]:
    return heapq.nsmallest(INSTANCES, uids, key=lambda uid: sha256(uid.encode()).digest())


def relatives(catalog: Catalog, case_id: str, known: Iterable[str] = ()) -> list[str]:
    """What other cases have to do with the scan of this one, in sentences.

    Series of one study, or of one frame of reference, are no copies: phases, reconstructions. A
    release keeps them in one split, and nothing is said.

    Args:
        known: cases that are known to show the same scan.
    """
    said: dict[str, str] = {}
    for other, there, here in sharing_uids(catalog, case_id):
        if here is there is UidRole.OWN:
            said[other] = f"has slices of the series of {other}, by their UIDs"
        elif here is UidRole.SOURCE is not there:
            said.setdefault(other, f"is derived, by its ImageType and UIDs, from {other}")
        elif there is UidRole.SOURCE is not here:
            said.setdefault(other, f"{other} is derived, by its ImageType and UIDs, from this scan")
    return [text for other, text in said.items() if other not in set(known)]
