"""The files of a case that the API serves: stored ones, and those derived from them.

A derived file (label map in force, joint attention map, regions, contact sheet) is named by the
checksum of its inputs, cached beside the case, and made again when they change.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from atlas_core.assembly import SOURCE_PRIORITY
from atlas_core.catalog import Catalog
from atlas_core.errors import AtlasError, NotFound
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import Volume, read_label, read_stored, write_volume
from atlas_core.organs import BACKGROUND
from atlas_core.records import Case, LabelSource
from atlas_core.review import CaseAttention, CaseReview, LabelVersion, LabelVersions
from atlas_core.store import CaseStore
from numpy.typing import NDArray

from atlas_review.settings import ReviewSettings
from atlas_review.volumes.attended_regions import (
    ATTENTION_LEVELS,
    AttendedRegion,
    OrganRegion,
    find_attended_regions,
)
from atlas_review.volumes.contact_sheet import write_contact_sheet

MAX_CHECKSUMS: Final = 4096

MAX_LISTED_REGIONS: Final = 2000
"""Regions of all organs together: ten times those of one organ (`MAX_REGIONS`)."""


@dataclass(frozen=True)
class CaseFile:
    """A file of a case, with what identifies its content.

    Attributes:
        path: where it is.
        sha256: checksum of its bytes; of a derived file, of its inputs.
    """

    path: Path
    sha256: str


@dataclass(frozen=True)
class OrganAttention:
    """The attention map of one organ.

    Attributes:
        organ: whose attention it is.
        attention_ml: attention size in millilitres.
        counts: False where the organ has an original label, which takes precedence (§3.2 ⑥).
        file: the map, uint8 with a slope of 1/136.
    """

    organ: str
    attention_ml: float
    counts: bool
    file: CaseFile


class CaseFiles:
    """Finds and makes the files of cases. Safe to share between threads."""

    def __init__(
        self,
        store: CaseStore,
        catalog: Catalog,
        versions: LabelVersions,
        cases: CaseReview,
        settings: ReviewSettings,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._versions = versions
        self._cases = cases
        self._settings = settings
        self._checksums: OrderedDict[tuple[str, int, int], str] = OrderedDict()
        self._checksums_lock = threading.Lock()
        self._derive_lock = threading.Lock()

    def ct(self, case: Case) -> CaseFile:
        """The CT; its checksum is on record in the catalog."""
        path = self._store.ct_path(case.id)
        if not path.is_file():
            raise NotFound("the CT is missing in the case store", case=case.id)
        return CaseFile(path, case.content_sha256)

    def label(self, version: LabelVersion) -> CaseFile:
        """The file of one label version."""
        return CaseFile(self._store.path(version.path), version.sha256)

    def sha256(self, path: Path) -> str:
        """Checksum of the bytes of a file, computed again only when it changes."""
        stat = path.stat()
        key = (str(path), stat.st_size, stat.st_mtime_ns)
        with self._checksums_lock:
            checksum = self._checksums.get(key)
        if checksum is None:
            with path.open("rb") as file:
                checksum = hashlib.file_digest(file, "sha256").hexdigest()
            with self._checksums_lock:
                self._checksums[key] = checksum
                while len(self._checksums) > MAX_CHECKSUMS:
                    self._checksums.popitem(last=False)
        return checksum

    def prediction(self, case_id: str) -> CaseAttention | None:
        """The one whose attention maps are shown: of the configured reading, else of another."""
        found = self._cases.predictions(case_id)
        preferred = [one for one in found if one.reading is self._settings.reading]
        return next(iter(preferred or found), None)

    def left_out(self, case_id: str) -> float:
        """Share of the body that the models were not shown; see `CaseStore.left_out`."""
        shown = self.prediction(case_id)
        if shown is None:
            return 0.0
        return self._store.left_out(case_id, shown.reading, shown.ensemble, shown.number)

    def organ_attention(self, case_id: str) -> list[OrganAttention]:
        """The attention maps of a case by falling size, with whether they count; an organ without
        attention has none."""
        prediction = self.prediction(case_id)
        if prediction is None:
            return []
        in_force = self._versions.in_force(case_id)
        original = {o for o, v in in_force.items() if v.source is LabelSource.ORIGINAL}
        files = []
        for size in prediction.organs:
            path = self._store.attention_path(
                case_id, prediction.reading, prediction.ensemble, size.organ, prediction.number
            )
            if path.is_file():
                file = CaseFile(path, self.sha256(path))
                counts = size.organ not in original
                files.append(OrganAttention(size.organ, size.attention_ml, counts, file))
        return files

    def attention_map(self, case_id: str, organ: str | None) -> CaseFile:
        """The attention map of one organ, cropped to the box of its attention; None: the largest
        value at each voxel of all that count, on the grid of the CT.

        Raises:
            NotFound: the case has none.
        """
        files = self._attention_maps(case_id, organ)
        if organ is not None:
            return files[0].file
        inputs = sorted(f"{one.organ} {one.file.sha256}" for one in files)
        paths = [one.file.path for one in files]
        geometry = self._catalog.case(case_id).geometry
        return self.derived(
            case_id,
            "attention.nii.gz",
            inputs,
            lambda path: _write_joint_attention(paths, geometry, path),
        )

    def label_map(self, case: Case) -> CaseFile:
        """All organs in one map: of each the label in force, original over revised over pseudo.

        Raises:
            NotFound: the case has no label at all.
        """
        chosen = self._by_priority(case.id)
        if not chosen:
            raise NotFound("the case has no label", case=case.id, remedy="score it, or hand one in")
        one = chosen[0]
        if all(v.path == one.path and v.value == self._label_value(v) for v in chosen):
            return self.label(one)  # the pseudo label map as it was predicted
        identity = [f"{v.organ} {v.path} {v.sha256} {v.value}" for v in chosen]
        labels = [f"{organ.name}={organ.label}" for organ in self._settings.organs]
        return self.derived(
            case.id,
            "label_map.nii.gz",
            [*identity, *labels],
            lambda path: self._write_label_map(case, path),
        )

    def read_label_map(self, case: Case) -> Volume:
        """The voxels of `label_map`."""
        return Volume(read_label(self.label_map(case).path).voxels, case.geometry)

    def regions(
        self, case: Case, organ: str | None, threshold: float, min_ml: float
    ) -> list[OrganRegion]:
        """Attended regions, of at least `min_ml` millilitres, of one organ, or (None) of each organ
        that counts, largest first, at most `MAX_LISTED_REGIONS`. Where the attention of two organs
        overlaps, each has a region there: an annotator looks at both.

        Raises:
            NotFound: the case has no attention map.
        """
        in_force = self._versions.in_force(case.id)
        found = [
            OrganRegion(
                organ=one.organ,
                organ_ml=in_force[one.organ].volume_ml if one.organ in in_force else 0.0,
                **region.model_dump(),
            )
            for one in self._attention_maps(case.id, organ)
            for region in self._regions_of(case, one, threshold)
            if region.region_ml >= min_ml
        ]
        return sorted(found, key=lambda region: -region.region_ml)[:MAX_LISTED_REGIONS]

    def _regions_of(
        self, case: Case, attention: OrganAttention, threshold: float
    ) -> list[AttendedRegion]:
        # With what stands of a region in the file: one of an earlier version lacks some of it.
        fields = " ".join(AttendedRegion.model_fields)
        inputs = [attention.file.sha256, f"{threshold:.4f}", fields]

        def write(path: Path) -> None:
            attended = read_stored(attention.file.path)
            start = case.geometry.start_of(
                attended.geometry, this="CT", that="attention map", case=case.id
            )
            found = find_attended_regions(attended, threshold, start)
            path.write_text(json.dumps([region.model_dump() for region in found]))

        made = self.derived(case.id, f"regions-{attention.organ}.json", inputs, write)
        return [AttendedRegion.model_validate(one) for one in json.loads(made.path.read_bytes())]

    def _attention_maps(self, case_id: str, organ: str | None) -> list[OrganAttention]:
        """The attention map of one organ; None: those that count, or all where none does.

        Raises:
            NotFound: the case has none.
        """
        files = self.organ_attention(case_id)
        if organ is None:
            files = [one for one in files if one.counts] or files
        else:
            files = [one for one in files if one.organ == organ]
        if not files:
            raise NotFound("no attention map", case=case_id, got=organ or "any organ")
        return files

    def contact_sheet(self, case: Case) -> CaseFile:
        """One picture of the labels in force and of the attention that counts.

        Raises:
            NotFound: the case has no label or no CT.
        """
        labels = self.label_map(case)
        attention = [one.file for one in self.organ_attention(case.id) if one.counts]
        return self.derived(
            case.id,
            "contact.png",
            [labels.sha256, *(file.sha256 for file in attention)],
            lambda path: write_contact_sheet(
                path,
                self.ct(case).path,
                labels.path,
                [file.path for file in attention],
                self._settings.organs,
            ),
        )

    def derived(
        self, case_id: str, name: str, inputs: Sequence[str], write: Callable[[Path], object]
    ) -> CaseFile:
        """A file that `write` makes, unless it is there already.

        Args:
            name: with its ending; in the store it also bears the checksum of `inputs`.
            inputs: all that its content depends on.
        """
        key = hashlib.sha256("\n".join(inputs).encode()).hexdigest()
        kind, _, ending = name.partition(".")
        path = self._store.derived_path(case_id, f"{kind}-{key[:16]}.{ending}")
        if not path.is_file():
            # One at a time: assembling a whole-body CT takes half a gigabyte.
            with self._derive_lock:
                if not path.is_file():
                    self._store.write_derived(case_id, path.name, write)
                    _remove_older(path, kind, ending)
        return CaseFile(path, key)

    def _by_priority(self, case_id: str) -> list[LabelVersion]:
        """The labels in force; where masks overlap, the first one gets the voxel."""
        in_force = self._versions.in_force(case_id)
        names = [name for name in self._settings.organs.names if name in in_force]
        names.sort(key=lambda name: SOURCE_PRIORITY.index(in_force[name].source))
        return [in_force[name] for name in names]

    def _label_value(self, version: LabelVersion) -> int:
        return self._settings.organs[version.organ].label

    def _write_label_map(self, case: Case, path: Path) -> None:
        """One organ after the other, so that at most two volumes are in memory; the result equals
        that of `atlas_core.assembly`."""
        labels: NDArray[np.uint8] = np.zeros(case.shape, np.uint8, order="F")
        read: tuple[str, NDArray[np.generic]] | None = None
        for version in self._by_priority(case.id):
            if read is None or read[0] != version.path:
                try:
                    read = version.path, read_label(self._store.path(version.path)).voxels
                except AtlasError as error:
                    raise error.with_case(case.id) from None
            free = (read[1] == version.value) & (labels == BACKGROUND)
            labels[free] = self._label_value(version)
        write_volume(path, labels, case.geometry)


def _write_joint_attention(paths: Sequence[Path], geometry: VolumeGeometry, path: Path) -> None:
    """The largest value of several attention maps at each voxel of the whole grid."""
    joint = np.zeros(geometry.shape, np.uint8, order="F")
    for one in paths:
        box = read_stored(one)
        start = geometry.start_of(box.geometry, this="CT", that="attention map")
        within = joint[tuple(map(slice, start, np.add(start, box.geometry.shape)))]
        np.maximum(within, box.voxels, out=within)
    write_volume(path, joint, geometry, slope=1.0 / ATTENTION_LEVELS)


def _remove_older(path: Path, kind: str, ending: str) -> None:
    """Remove what was made of other inputs; whoever reads it still has it open."""
    for other in path.parent.glob(f"{kind}-????????????????.{ending}"):
        if other != path:
            other.unlink(missing_ok=True)
