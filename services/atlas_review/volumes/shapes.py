"""Every shape that somebody or something gave an organ of a case, for an annotator to take: label
versions, and what each model of the shown prediction says by itself."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import numpy as np
from atlas_core.errors import InvalidInput, NotFound
from atlas_core.imaging import Volume, read_label, write_volume
from atlas_core.organs import OrganScheme
from atlas_core.records import Case, LabelSource
from atlas_core.review import LabelVersion, LabelVersions
from atlas_core.store import CaseStore
from numpy.typing import NDArray

from atlas_review.volumes.case_files import CaseFile, CaseFiles

VoxelBox = tuple[tuple[int, int, int], tuple[int, int, int]]
"""First and last voxel, both included, as `AttendedRegion.box_ijk`."""

_LABEL: Final = "label-"
_MEMBER: Final = "member-"


class ShapeKind(StrEnum):
    """Where a shape comes from."""

    ORIGINAL = "original"
    REVISED = "revised"
    PROPOSAL = "proposal"
    """Handed in, and not in force."""
    PSEUDO = "pseudo"
    """Of the ensemble that scored the case last."""
    EARLIER = "earlier"
    """Of an ensemble before: the last iteration's, and those before it."""
    MEMBER = "member"
    """What one model of the ensemble says by itself."""


@dataclass(frozen=True)
class Shape:
    """One shape of an organ.

    Attributes:
        id: unique in the case.
        kind: where it comes from.
        model: the member; empty for label versions.
        version: the label version; None for members.
        path: the file that holds it.
        value: its voxels in that file.
    """

    id: str
    kind: ShapeKind
    model: str
    version: LabelVersion | None
    path: Path
    value: int


class Shapes:
    """Finds the shapes of an organ. Safe to share between threads."""

    def __init__(
        self, store: CaseStore, files: CaseFiles, versions: LabelVersions, organs: OrganScheme
    ) -> None:
        self._store = store
        self._files = files
        self._versions = versions
        self._organs = organs

    def of_organ(self, case_id: str, organ: str) -> list[Shape]:
        """All shapes of an organ: what is in force first, then newer before older versions, then
        the members by name.

        Raises:
            UnknownLabel: no such organ.
        """
        value = self._organs[organ].label
        shown = self._files.prediction(case_id)
        pseudo = members = None
        if shown is not None:
            where = (case_id, shown.reading, shown.ensemble)
            pseudo = self._store.relative(self._store.pseudo_label_path(*where, shown.number))
            members = self._store.member_label_paths(*where, shown.number)
        versions = self._versions.versions(case_id, organ)
        versions.sort(key=lambda one: (not one.in_force, -one.created_at.timestamp()))
        return [
            Shape(
                f"{_LABEL}{one.id}", _kind(one, pseudo), "", one,
                self._store.path(one.path), one.value,
            )
            for one in versions
        ] + [
            Shape(f"{_MEMBER}{name}", ShapeKind.MEMBER, name, None, path, value)
            for name, path in (members or {}).items()
        ]  # fmt: skip

    def find(self, case_id: str, organ: str, shape_id: str) -> Shape:
        """One shape.

        Raises:
            UnknownLabel: no such organ.
            NotFound: it has no such shape.
        """
        for shape in self.of_organ(case_id, organ):
            if shape.id == shape_id:
                return shape
        raise NotFound(f"no such shape of the {organ}", case=case_id, got=shape_id)

    def file(self, case: Case, organ: str, shape: Shape, box: VoxelBox | None) -> CaseFile:
        """The mask of a shape, uint8 of 0 and 1, cropped to what it fills (of `box`)."""
        name = f"shape-{organ}-{shape.id}{'-box' if box else ''}.nii.gz"
        inputs = [str(shape.path), self._files.sha256(shape.path), str(shape.value), str(box)]

        def write(path: Path) -> None:
            mask = self.mask(case, shape)
            if box is not None:
                outside = mask
                mask = np.zeros_like(mask)
                mask[_slices(box, case)] = outside[_slices(box, case)]
            start, filled = filled_part(mask)
            grid = case.geometry.cropped(start, filled.shape)
            write_volume(path, np.asfortranarray(filled.astype(np.uint8)), grid)

        return self._files.derived(case.id, name, inputs, write)

    def mask(self, case: Case, shape: Shape) -> NDArray[np.bool_]:
        """The voxels of a shape, bool ``[i, j, k]`` on the CT's grid."""
        label = read_label(shape.path)
        start = case.geometry.start_of(label.geometry, this="CT", that="label", case=case.id)
        mask = np.zeros(case.geometry.shape, np.bool_, order="F")
        within = tuple(map(slice, start, np.add(start, label.geometry.shape)))
        mask[within] = label.voxels == shape.value
        return mask

    def taken(
        self, case: Case, organ: str, shape: Shape, box: VoxelBox | None, base: LabelVersion | None
    ) -> Volume:
        """The mask of an organ with a shape taken over in `box`, elsewhere as in `base` (None:
        empty); without a box, the shape itself."""
        mask = self.mask(case, shape)
        if box is not None:
            whole = np.zeros_like(mask)
            if base is not None:
                whole = self.mask(case, self.find(case.id, organ, f"{_LABEL}{base.id}"))
            within = _slices(box, case)
            whole[within] = mask[within]
            mask = whole
        return Volume(mask.astype(np.uint8), case.geometry)


def _kind(version: LabelVersion, pseudo: str | None) -> ShapeKind:
    if version.source is LabelSource.PSEUDO:
        return ShapeKind.PSEUDO if version.path == pseudo else ShapeKind.EARLIER
    if version.source is LabelSource.ORIGINAL:
        return ShapeKind.ORIGINAL
    return ShapeKind.PROPOSAL if version.is_proposal else ShapeKind.REVISED


def _slices(box: VoxelBox, case: Case) -> tuple[slice, slice, slice]:
    """The voxels of a box.

    Raises:
        InvalidInput: it is none of the CT's.
    """
    first, last = box
    if not all(0 <= a <= b < n for a, b, n in zip(first, last, case.shape, strict=True)):
        raise InvalidInput(
            "the box does not lie in the CT",
            case=case.id,
            expected=f"first <= last, within {'×'.join(map(str, case.shape))} voxels",
            got=f"{first} to {last}",
        )
    i, j, k = (slice(a, b + 1) for a, b in zip(first, last, strict=True))
    return i, j, k


def filled_part(mask: NDArray[np.bool_]) -> tuple[tuple[int, int, int], NDArray[np.bool_]]:
    """The smallest box around a mask, and where it begins; of an empty one a single voxel."""
    ranges = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        at = np.flatnonzero(mask.any(axis=others))
        ranges.append((int(at[0]), int(at[-1]) + 1) if at.size else (0, 1))
    i, j, k = (slice(*one) for one in ranges)
    return (i.start, j.start, k.start), mask[i, j, k]
