"""What the atlas knows of one case, as DICOM objects on the series that it was imported from."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from atlas_core.assembly import (
    Assemblies,
    LabelPainter,
    paint_order,
    preferred,
    read_assembled,
)
from atlas_core.atomic_writes import new_folder, write_synced
from atlas_core.catalog import Catalog, newest_scores
from atlas_core.dicom import (
    as_bytes,
    measurement_report,
    parametric_map,
    segmentation,
    structure_set,
)
from atlas_core.errors import Conflict, InvalidInput, NotFound
from atlas_core.imaging import read_cropped, read_label
from atlas_core.organs import OrganScheme
from atlas_core.records import Case, Label, LabelSource, Reading
from atlas_core.store import CaseStore

ATTENTION_SLOPE = 1 / 136
"""Of stored attention maps; see `CaseStore.attention_path`."""


class ObjectKind(StrEnum):
    """What an object is."""

    SEG = "seg"
    RTSTRUCT = "rtstruct"
    MAP = "map"
    REPORT = "report"


class ExportedLabels(StrEnum):
    """Which labels of a case are written."""

    ASSEMBLED = "assembled"
    REVISED = "revised"
    PSEUDO = "pseudo"
    ORIGINAL = "original"
    PREFERRED = "preferred"
    """Of each organ the original label, else the revised, else the pseudo label."""


def objects_of_case(
    catalog: Catalog,
    store: CaseStore,
    case_id: str,
    source: Sequence[Dataset],
    *,
    kinds: Collection[ObjectKind] = (ObjectKind.SEG,),
    label: ExportedLabels = ExportedLabels.ASSEMBLED,
    reading: Reading = Reading.PAPER,
) -> dict[str, Dataset]:
    """DICOM objects of one case, by a name for each.

    Args:
        source: headers of all slices of the series that the case was imported from.
        kinds: which objects; a map for each organ with any attention.
        label: what segments, contours and volumes are of.
        reading: of the score whose attention is written.

    Returns:
        ``seg``, ``rtstruct``, ``report``, ``map-<organ>`` → the object.

    Raises:
        NotFound: no such case, label or score.
        GridMismatch: `source` is not the series of the case.
        InvalidInput, UnsupportedVolume, CorruptFile: as `segmentation`, and reading the label.
    """
    case, scheme = catalog.case(case_id), catalog.organ_scheme()
    found: dict[str, Dataset] = {}
    if set(kinds) - {ObjectKind.MAP}:
        chosen = _chosen(catalog, store, case, scheme, label)
        described = f"Atlas Loop labels ({label})"
        seg = segmentation(
            source,
            chosen.labels,
            scheme,
            geometry=case.geometry,
            origin=chosen.origin,
            created_at=chosen.made,
            description=described,
        )
        if ObjectKind.SEG in kinds or ObjectKind.REPORT in kinds:  # a report refers to its segments
            found["seg"] = seg
        if ObjectKind.RTSTRUCT in kinds:
            found["rtstruct"] = structure_set(
                source,
                chosen.labels,
                scheme,
                geometry=case.geometry,
                origin=chosen.origin,
                created_at=chosen.made,
                description=described,
            )
        if ObjectKind.REPORT in kinds:
            found["report"] = measurement_report(
                source, seg, scheme, chosen.volumes_ml, created_at=chosen.made
            )
    if ObjectKind.MAP in kinds:
        found |= _maps(catalog, store, case, source, scheme, reading)
    return found


def write_objects(folder: Path, objects: Mapping[str, Dataset]) -> None:
    """Writes `objects` as ``<name>.dcm`` into the new `folder`, all or nothing.

    Raises:
        Conflict: `folder` holds something.
    """
    try:
        with new_folder(folder) as draft:
            for name, made in objects.items():
                write_synced(draft / f"{name}.dcm", as_bytes(made))
    except FileExistsError:
        raise Conflict(
            "the folder holds something", case=folder.name, remedy="name a new folder"
        ) from None


class _Chosen:
    """Labels of a case, where each comes from, its volume, and when the last was made."""

    def __init__(self, labels: NDArray[np.uint8] | dict[str, NDArray[np.bool_]]) -> None:
        self.labels = labels
        self.origin: dict[str, LabelSource] = {}
        self.volumes_ml: dict[str, float] = {}
        self.made: datetime = datetime.min


def _chosen(
    catalog: Catalog, store: CaseStore, case: Case, scheme: OrganScheme, label: ExportedLabels
) -> _Chosen:
    if label is ExportedLabels.ASSEMBLED:
        assembly = Assemblies(catalog).of_cases([case.id]).get(case.id)
        if assembly is None:
            raise NotFound(
                "the case is not assembled", case=case.id, remedy="run `atlasloop assemble` first"
            )
        chosen = _Chosen(read_assembled(store, case, assembly).voxels)
        for found in assembly.organs:
            chosen.origin[found.organ] = found.source
            chosen.volumes_ml[found.organ] = found.volume_ml
        chosen.made = assembly.created_at
        return chosen
    rows = _rows(catalog, case, scheme, label)
    if label is ExportedLabels.PREFERRED:
        painter = LabelPainter(case.shape, scheme)
        for row, read in _read(store, case, paint_order(rows, scheme)):
            painter.paint(row.organ, read == row.value)
        voxels = np.bincount(painter.labels.ravel(order="K"), minlength=256)
        chosen = _Chosen(painter.labels)
        for row in rows:
            chosen.volumes_ml[row.organ] = case.geometry.voxel_ml * voxels[scheme[row.organ].label]
    else:
        masks = {row.organ: read == row.value for row, read in _read(store, case, rows)}
        chosen = _Chosen(masks)
        chosen.volumes_ml = {row.organ: row.volume_ml for row in rows}
    chosen.origin = {row.organ: row.source for row in rows}
    chosen.made = max(row.created_at for row in rows)
    return chosen


def _rows(catalog: Catalog, case: Case, scheme: OrganScheme, label: ExportedLabels) -> list[Label]:
    """One label of each organ that has any."""
    everywhere = label is ExportedLabels.PREFERRED
    by_organ: dict[str, list[Label]] = {}
    for row in catalog.labels(case.id, None if everywhere else LabelSource(label)):
        if row.organ in scheme:
            by_organ.setdefault(row.organ, []).append(row)
    if not by_organ:
        kind = "label" if everywhere else f"{label} label"
        remedy = "score it first: `atlasloop score`" if everywhere else "choose other labels"
        raise NotFound(f"the case has no {kind}", case=case.id, remedy=remedy)
    return sorted((preferred(found) for found in by_organ.values()), key=lambda row: row.path)


def _read(
    store: CaseStore, case: Case, rows: Sequence[Label]
) -> Iterator[tuple[Label, NDArray[np.uint8]]]:
    """Each with the voxels of its file; pseudo labels of a case share one."""
    path, voxels = "", np.empty(0, np.uint8)
    for row in rows:
        if row.path != path:
            volume = read_label(store.path(row.path))
            case.geometry.require_same_grid(
                volume.geometry, this="CT", that=row.organ, case=case.id
            )
            path, voxels = row.path, volume.voxels
        yield row, voxels


def _maps(
    catalog: Catalog,
    store: CaseStore,
    case: Case,
    source: Sequence[Dataset],
    scheme: OrganScheme,
    reading: Reading,
) -> dict[str, Dataset]:
    newest = newest_scores(catalog, [case.id], reading).get(case.id)
    score = catalog.score(case.id, reading, newest[0]) if newest is not None else None
    if newest is None or score is None:
        raise NotFound("the case is not scored", case=case.id, remedy="run `atlasloop score` first")
    found: dict[str, Dataset] = {}
    for organ in scheme:
        path = store.attention_path(case.id, reading, newest[0], organ.name, newest[1])
        stored = read_cropped(path, case.geometry, case=case.id) if path.is_file() else None
        if stored is not None and stored.any():
            found[f"map-{organ.name}"] = parametric_map(
                source,
                stored,
                slope=ATTENTION_SLOPE,
                geometry=case.geometry,
                created_at=score.created_at,
                description=f"Atlas Loop attention ({organ.title})",
            )
    if not found:
        raise InvalidInput("the case has no attention: nothing to write", case=case.id)
    return found
