"""The files of a case as the API serves them: stored ones, and those derived from them.

What is derived (label map in force, joint attention map, regions, contact sheet) is named by what
it was made of, kept beside the case, and made again when that changes.
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
from atlas_core.imaging import Volume, read_label, read_stored, write_volume
from atlas_core.organs import BACKGROUND
from atlas_core.records import Case, LabelSource
from atlas_core.review import CaseAttention, CaseReview, LabelVersion, LabelVersions
from atlas_core.store import CaseStore
from numpy.typing import NDArray

from atlas_review.settings import ReviewSettings
from atlas_review.volumes.attended_regions import (
    ATTENTION_LEVELS,
    OrganRegion,
    Region,
    attended_regions,
)
from atlas_review.volumes.contact_sheet import write_contact_sheet

KEPT_CHECKSUMS: Final = 4096


@dataclass(frozen=True)
class ServedFile:
    """A file that a client may have.

    Attributes:
        path: where it lies; made if it is not there yet.
        sha256: names its content: of the file's bytes, or, of a derived one, of what it is made of.
    """

    path: Path
    sha256: str


@dataclass(frozen=True)
class AttentionFile:
    """The attention map of one organ.

    Attributes:
        organ: which.
        attention_ml: its size.
        counts: False where the organ has an original label, which wins (§3.2 ⑥).
    """

    organ: str
    attention_ml: float
    counts: bool
    file: ServedFile


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
        self._lock = threading.Lock()
        self._making = threading.Lock()

    def ct(self, case: Case) -> ServedFile:
        """The CT; it is named by its content, which the catalog knows."""
        path = self._store.ct_path(case.id)
        if not path.is_file():
            raise NotFound("the CT is missing in the case store", case=case.id)
        return ServedFile(path, case.content_sha256)

    def label(self, version: LabelVersion) -> ServedFile:
        """The file of one label version."""
        return ServedFile(self._store.path(version.path), version.sha256)

    def sha256(self, path: Path) -> str:
        """Of the bytes of a file, computed once as long as it does not change."""
        stat = path.stat()
        key = (str(path), stat.st_size, stat.st_mtime_ns)
        with self._lock:
            known = self._checksums.get(key)
        if known is None:
            with path.open("rb") as file:
                known = hashlib.file_digest(file, "sha256").hexdigest()
            with self._lock:
                self._checksums[key] = known
                while len(self._checksums) > KEPT_CHECKSUMS:
                    self._checksums.popitem(last=False)
        return known

    def prediction(self, case_id: str) -> CaseAttention | None:
        """Whose attention maps are shown: of the configured reading, else of another."""
        found = self._cases.predictions(case_id)
        wanted = [one for one in found if one.reading is self._settings.reading]
        return next(iter(wanted or found), None)

    def attention(self, case_id: str) -> list[AttentionFile]:
        """The attention maps of a case by falling size, and which of them count."""
        prediction = self.prediction(case_id)
        if prediction is None:
            return []
        in_force = self._versions.in_force(case_id)
        original = {o for o, v in in_force.items() if v.source is LabelSource.ORIGINAL}
        files = []
        for size in prediction.organs:
            path = self._store.attention_path(
                case_id, prediction.reading, prediction.ensemble, size.organ
            )
            if path.is_file():
                file = ServedFile(path, self.sha256(path))
                counts = size.organ not in original
                files.append(AttentionFile(size.organ, size.attention_ml, counts, file))
        return files

    def attention_of(self, case_id: str, organ: str | None) -> ServedFile:
        """The map of one organ; None: of all that count, the larger value at each voxel.

        Raises:
            NotFound: the case has none.
        """
        files = self._that_count(case_id, organ)
        if len(files) == 1:
            return files[0].file
        ingredients = sorted(f"{one.organ} {one.file.sha256}" for one in files)
        paths = [one.file.path for one in files]
        return self.derived(
            case_id, "attention.nii.gz", ingredients, lambda path: _write_joint(paths, path)
        )

    def label_map(self, case: Case) -> ServedFile:
        """All organs in one map: of each the label in force, original over revised over pseudo.

        Raises:
            NotFound: the case has no label at all.
        """
        chosen = self._ordered(case.id)
        if not chosen:
            raise NotFound("the case has no label", case=case.id, remedy="score it, or hand one in")
        one = chosen[0]
        if all(v.path == one.path and v.value == self._label_id(v) for v in chosen):
            return self.label(one)  # the pseudo label as it was predicted
        identity = [f"{v.organ} {v.path} {v.sha256} {v.value}" for v in chosen]
        labels = [f"{organ.name}={organ.label}" for organ in self._settings.organs]
        return self.derived(
            case.id,
            "label_map.nii.gz",
            [*identity, *labels],
            lambda path: self._write_label_map(case, path),
        )

    def label_masks(self, case: Case) -> Volume:
        """The label map in force, in memory."""
        return Volume(read_label(self.label_map(case).path).voxels, case.geometry)

    def regions(self, case: Case, organ: str | None, threshold: float) -> list[OrganRegion]:
        """Connected groups of attended voxels of one organ, or (None) of each that counts, largest
        first. Where the attention of two organs overlaps, each has a region there: an annotator
        looks at both.

        Raises:
            NotFound: the case has no attention map.
        """
        found = [
            OrganRegion(organ=one.organ, **region.model_dump())
            for one in self._that_count(case.id, organ)
            for region in self._regions_of(case, one, threshold)
        ]
        return sorted(found, key=lambda region: -region.ml)

    def _regions_of(self, case: Case, attention: AttentionFile, threshold: float) -> list[Region]:
        ingredients = [attention.file.sha256, f"{threshold:.4f}"]

        def write(path: Path) -> None:
            found = attended_regions(read_stored(attention.file.path), threshold)
            path.write_text(json.dumps([region.model_dump() for region in found]))

        made = self.derived(case.id, f"regions-{attention.organ}.json", ingredients, write)
        return [Region.model_validate(one) for one in json.loads(made.path.read_bytes())]

    def _that_count(self, case_id: str, organ: str | None) -> list[AttentionFile]:
        """The attention map of one organ; None: of all that count, or of all where none does.

        Raises:
            NotFound: the case has none.
        """
        files = self.attention(case_id)
        if organ is None:
            files = [one for one in files if one.counts] or files
        else:
            files = [one for one in files if one.organ == organ]
        if not files:
            raise NotFound("no attention map", case=case_id, got=organ or "any organ")
        return files

    def contact_sheet(self, case: Case) -> ServedFile:
        """One picture of the labels in force and the attention that counts.

        Raises:
            NotFound: the case has no label or no CT.
        """
        labels = self.label_map(case)
        attention = [one.file for one in self.attention(case.id) if one.counts]
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
        self, case_id: str, name: str, ingredients: Sequence[str], write: Callable[[Path], object]
    ) -> ServedFile:
        """A file that `write` makes, unless it is there already.

        Args:
            name: with its ending; in the store it also bears the checksum of `ingredients`.
            ingredients: all that its content depends on.
        """
        key = hashlib.sha256("\n".join(ingredients).encode()).hexdigest()
        kind, _, ending = name.partition(".")
        path = self._store.derived_path(case_id, f"{kind}-{key[:16]}.{ending}")
        if not path.is_file():
            # One at a time: a whole-body CT takes half a gigabyte to assemble.
            with self._making:
                if not path.is_file():
                    self._store.write_derived(case_id, path.name, write)
                    _remove_older(path, kind, ending)
        return ServedFile(path, key)

    def _ordered(self, case_id: str) -> list[LabelVersion]:
        """The labels in force, those first that get a voxel where masks overlap."""
        in_force = self._versions.in_force(case_id)
        names = [name for name in self._settings.organs.names if name in in_force]
        names.sort(key=lambda name: SOURCE_PRIORITY.index(in_force[name].source))
        return [in_force[name] for name in names]

    def _label_id(self, version: LabelVersion) -> int:
        return self._settings.organs[version.organ].label

    def _write_label_map(self, case: Case, path: Path) -> None:
        """One organ after the other, so that no more than two volumes are in memory; the result is
        that of `assembly.assemble`."""
        labels: NDArray[np.uint8] = np.zeros(case.shape, np.uint8, order="F")
        read: tuple[str, NDArray[np.generic]] | None = None
        for version in self._ordered(case.id):
            if read is None or read[0] != version.path:
                try:
                    read = version.path, read_label(self._store.path(version.path)).voxels
                except AtlasError as error:
                    raise error.with_case(case.id) from None
            free = (read[1] == version.value) & (labels == BACKGROUND)
            labels[free] = self._label_id(version)
        write_volume(path, labels, case.geometry)


def _write_joint(paths: Sequence[Path], path: Path) -> None:
    """The largest value of several attention maps at each voxel."""
    joint = read_stored(paths[0])
    for other in paths[1:]:
        np.maximum(joint.voxels, read_stored(other).voxels, out=joint.voxels)
    write_volume(path, joint.voxels, joint.geometry, slope=1.0 / ATTENTION_LEVELS)


def _remove_older(path: Path, kind: str, ending: str) -> None:
    """Remove what was made of other ingredients; whoever reads it still has it open."""
    for other in path.parent.glob(f"{kind}-????????????????.{ending}"):
        if other != path:
            other.unlink(missing_ok=True)
