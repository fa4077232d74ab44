"""Assembly of one stored case: its labels in force, and the map that combines them (§3.2 ⑥).

`choose_labels` works on values only; `assemble_case` reads the labels in force one at a time, so
that a case needs the memory of three label maps however many organs it has, each in its own box, so
that it takes the time of its files, and stores the result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from atlas_core.assembly.post_processing import PostProcessing, PostProcessingRules, post_processed
from atlas_core.assembly.priority import LabelPainter, paint_order, preferred
from atlas_core.assembly.records import Assembly, OrganProvenance
from atlas_core.errors import AtlasError, CorruptFile, InvalidInput, NotFound
from atlas_core.imaging import LabelVolume, Volume, read_header, read_label
from atlas_core.imaging.label_maps import VoxelBox, boxes_of
from atlas_core.organs import OrganScheme
from atlas_core.records import Case, Label, LabelSource, Reading
from atlas_core.store import CaseStore

NOWHERE: Final = (slice(0, 0), slice(0, 0), slice(0, 0))
"""Box of an organ that a map does not have."""

ASSEMBLY_FORMAT: Final = 1
"""Incremented whenever equal inputs give another map, so that every case is assembled anew."""


@dataclass(frozen=True)
class PseudoLabelMap:
    """The stored pseudo labels of one prediction of a case.

    Attributes:
        reading, ensemble: of the prediction.
        path: the label map, relative to the case store.
    """

    reading: Reading
    ensemble: str
    path: str


@dataclass(frozen=True)
class AssemblyInputs:
    """Everything that an assembled map depends on.

    Attributes:
        case: the case that is assembled.
        labels: the label in force of every organ that has one, in the order of painting.
        prediction: the source of pseudo labels among them; None: the case is not scored.
        post_processing: organ → what is kept of its pseudo label.
        scheme: organs and their label ids.
    """

    case: Case
    labels: tuple[Label, ...]
    prediction: PseudoLabelMap | None
    post_processing: PostProcessingRules
    scheme: OrganScheme

    @property
    def missing(self) -> tuple[str, ...]:
        """Organs without any label."""
        there = {label.organ for label in self.labels}
        return tuple(name for name in self.scheme.names if name not in there)

    def rule(self, label: Label) -> PostProcessing | None:
        """The post-processing of `label`; None for labels that people drew."""
        rule = self.post_processing.get(label.organ)
        if label.source is not LabelSource.PSEUDO or rule is None or rule.keeps_all:
            return None
        return rule

    @property
    def sha256(self) -> str:
        """Checksum: equal inputs, equal map."""
        described: list[Any] = [
            ASSEMBLY_FORMAT,
            self.case.content_sha256,
            [[organ.name, organ.label] for organ in self.scheme],
            [
                [label.organ, label.source.value, label.path, label.sha256, label.value]
                for label in self.labels
            ],
            {
                label.organ: rule.model_dump()
                for label in self.labels
                if (rule := self.rule(label)) is not None
            },
        ]
        text = json.dumps(described, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def choose_labels(
    case: Case,
    labels: Iterable[Label],
    prediction: PseudoLabelMap | None,
    post_processing: PostProcessingRules,
    scheme: OrganScheme,
) -> AssemblyInputs:
    """The label in force of every organ: original over revised over the prediction's.

    An original label without voxels counts too: the patient lacks the organ, and what a model
    predicts there is cleared.

    Args:
        labels: all labels of the case; organs outside `scheme` are left out.
        prediction: pseudo labels of other predictions are ignored.

    Raises:
        InvalidInput: the case is not scored, and its other labels do not cover every organ. A map
            without them would look as if the patient lacked them.
    """
    usable = [
        label
        for label in labels
        if label.organ in scheme
        and (
            label.source is not LabelSource.PSEUDO
            or (prediction is not None and label.path == prediction.path)
        )
    ]
    by_organ = {
        organ: [label for label in usable if label.organ == organ] for organ in scheme.names
    }
    chosen = (preferred(found) for found in by_organ.values() if found)
    inputs = AssemblyInputs(
        case, paint_order(chosen, scheme), prediction, dict(post_processing), scheme
    )
    if prediction is None and inputs.missing:
        raise InvalidInput(
            "the case is not scored, and not every organ is annotated",
            case=case.id,
            expected="a score, or labels of all organs",
            got=f"no label of {', '.join(inputs.missing)}",
            remedy="run `atlasloop score` first",
        )
    return inputs


def assemble_case(store: CaseStore, inputs: AssemblyInputs) -> Assembly:
    """Make the label map of one case and store it with its provenance.

    The files appear completely or not at all; the record returned is for the catalog
    (`Assemblies.record`). Equal inputs give equal files.

    Raises:
        NotFound: the CT or a label file is missing.
        CorruptFile: a file is damaged, or not the one on record.
        GridMismatch: a label lies on another grid than the CT.
    """
    case, digest = inputs.case, inputs.sha256
    try:
        _require_ct(store, case)
        painter = LabelPainter(case.shape, inputs.scheme)
        painted = [
            _paint(painter, label, box, mask, inputs.rule(label), case.geometry.voxel_ml)
            for label, box, mask in _masks(store, inputs)
        ]
    except AtlasError as error:
        raise (error if error.case else error.with_case(case.id)) from error
    order = inputs.scheme.names.index
    record = Assembly(
        case_id=case.id,
        path=store.relative(store.assembled_path(case.id, digest)),
        sha256="0" * 64,
        inputs_sha256=digest,
        reading=inputs.prediction.reading if inputs.prediction else None,
        ensemble=inputs.prediction.ensemble if inputs.prediction else None,
        organs=tuple(sorted(painted, key=lambda organ: order(organ.organ))),
        missing=inputs.missing,
        created_at=datetime.now(UTC),
    )
    stored = store.write_assembly(
        case.id,
        digest,
        Volume(painter.labels, case.geometry),
        lambda sha256: provenance_json(record.model_copy(update={"sha256": sha256})),
    )
    return record.model_copy(update={"sha256": stored.sha256})


def provenance_json(assembly: Assembly) -> str:
    """The record as the text of a file, without the time, so that equal maps have equal files."""
    return assembly.model_dump_json(indent=2, exclude={"created_at"}) + "\n"


def read_assembled(store: CaseStore, case: Case, assembly: Assembly) -> LabelVolume:
    """The assembled map of a case.

    Raises:
        NotFound, CorruptFile: it is missing, or not the file on record.
        GridMismatch: it lies on another grid than the CT.
    """
    return _read_recorded(store, case, assembly.path, assembly.sha256, "assembled map")


def write_masks(store: CaseStore, case: Case, assembly: Assembly, scheme: OrganScheme) -> int:
    """Store a mask per organ next to the assembled map; existing ones stay.

    Returns:
        How many were written.

    Raises:
        NotFound, CorruptFile, GridMismatch: as `read_assembled`.
    """
    wanted = [organ.organ for organ in assembly.organs if organ.organ in scheme]
    missing = [
        organ
        for organ in wanted
        if not store.assembled_mask_path(case.id, assembly.inputs_sha256, organ).is_file()
    ]
    if missing:
        volume = read_assembled(store, case, assembly)
        for organ in missing:
            mask = (volume.voxels == scheme[organ].label).view(np.uint8)
            store.write_assembled_mask(
                case.id, assembly.inputs_sha256, organ, Volume(mask, case.geometry)
            )
    return len(missing)


def _require_ct(store: CaseStore, case: Case) -> None:
    if not store.ct_path(case.id).is_file():
        raise NotFound(
            "the CT is gone from the case store",
            case=case.id,
            remedy="restore it from a backup, or import it again",
        )
    found = read_header(store.ct_path(case.id)).geometry
    case.geometry.require_same_grid(found, this="case on record", that="stored CT", case=case.id)


def _masks(
    store: CaseStore, inputs: AssemblyInputs
) -> Iterator[tuple[Label, VoxelBox, NDArray[np.bool_]]]:
    """The labels with their boxes and the masks in them, one at a time; a file that several share
    is read once."""
    path, voxels, boxes = None, None, list[VoxelBox | None]()
    for label in inputs.labels:
        if voxels is None or label.path != path:
            voxels = None  # before the next one is read
            what = f"{label.organ} ({label.source.value})"
            voxels = _read_recorded(store, inputs.case, label.path, label.sha256, what).voxels
            path = label.path
            values = [other.value for other in inputs.labels if other.path == path]
            boxes = boxes_of(voxels, max(values))
        box = boxes[label.value - 1] or NOWHERE
        yield label, box, np.asarray(voxels[box] == label.value)


def _read_recorded(store: CaseStore, case: Case, path: str, sha256: str, what: str) -> LabelVolume:
    file = store.path(path)
    found = _sha256(file, case, what)
    if found != sha256:
        raise CorruptFile(
            f"{what}: this is not the file on record",
            case=case.id,
            expected=sha256,
            got=found,
            remedy="restore the file from a backup, or make that label again",
        )
    volume = read_label(file)
    case.geometry.require_same_grid(volume.geometry, this="CT", that=what, case=case.id)
    return volume


def _sha256(file: Path, case: Case, what: str) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        raise NotFound(
            f"{what}: the file is gone from the case store",
            case=case.id,
            remedy="restore it from a backup, or make that label again",
        ) from None


def _paint(
    painter: LabelPainter,
    label: Label,
    box: VoxelBox,
    mask: NDArray[np.bool_],
    rule: PostProcessing | None,
    voxel_ml: float,
) -> OrganProvenance:
    claimed = int(np.count_nonzero(mask))
    if rule is not None:
        mask = post_processed(mask, rule, voxel_ml)
    kept = int(np.count_nonzero(mask))
    overlaps = painter.paint(label.organ, mask, box)
    return OrganProvenance(
        organ=label.organ,
        source=label.source,
        label_path=label.path,
        label_sha256=label.sha256,
        models=label.models,
        author=label.annotator,
        voxels=kept - overlaps,
        volume_ml=(kept - overlaps) * voxel_ml,
        overlaps=overlaps,
        post_processing=rule,
        removed_voxels=claimed - kept,
    )
