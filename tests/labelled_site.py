"""A catalog and a store with tiny labelled cases, for tests of assembly and release.

Labels and predictions are written as import, review and scoring write them, without any service.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from atlas_core.catalog import Catalog
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import Volume, content_sha256, write_volume
from atlas_core.model_spec import ModelRef, ensemble_key
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.records import Case, Dataset, Label, LabelSource, OrganScore, Reading, Score
from atlas_core.store import CaseStore
from numpy.typing import NDArray

SHAPE = (12, 10, 8)
GEOMETRY = VolumeGeometry.from_array(SHAPE, np.diag([-5.0, -5.0, 10.0, 1.0]))
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)

UNET = ModelRef(name="unet", version=0, sha256="1" * 64)
NNUNET = ModelRef(name="nnunet", version=0, sha256="2" * 64)
UNET_1 = ModelRef(name="unet", version=1, sha256="3" * 64)

Mask = NDArray[np.uint8]


def box(*corners: tuple[int, int]) -> Mask:
    """A mask of 1 in the box with these (start, stop) along i, j, k; nothing without corners."""
    mask = np.zeros(SHAPE, np.uint8, order="F")
    if corners:
        mask[tuple(slice(*corner) for corner in corners)] = 1
    return mask


def cube(start: int, stop: int) -> Mask:
    """A box of these bounds along i and of the middle of the other axes."""
    return box((start, stop), (2, 8), (2, 6))


def label_map(masks: Mapping[str, Mask]) -> Mask:
    """Our label ids where the masks are; the last one counts."""
    labels = np.zeros(SHAPE, np.uint8, order="F")
    for organ, mask in masks.items():
        labels[mask != 0] = ABDOMEN_ATLAS[organ].label
    return labels


@dataclass(frozen=True)
class LabelledSite:
    """See the module. Instants are counted from `EPOCH` in hours."""

    catalog: Catalog
    store: CaseStore

    def add_dataset(self, name: str, **fields: Any) -> None:
        self.catalog.add_dataset(Dataset(name=name, **fields))

    def add_case(self, case_id: str, dataset: str = "ours", *, source: str = "") -> Case:
        """A CT of noise, another one for each id."""
        seed = int.from_bytes(hashlib.sha256(case_id.encode()).digest()[:4])
        voxels = np.random.default_rng(seed).integers(-1000, 200, SHAPE).astype(np.int16)
        ct = Volume(np.asfortranarray(voxels), GEOMETRY)
        self.catalog.add_dataset(Dataset(name=dataset))
        self.store.write_ct(case_id, ct)
        case = Case(
            id=case_id, dataset=dataset, content_sha256=content_sha256(ct), shape=SHAPE,
            affine=GEOMETRY.affine, source=source or f"{case_id}/ct.nii.gz", imported_at=EPOCH,
        )  # fmt: skip
        self.catalog.add_case(case)
        return case

    def add_label(
        self, case_id: str, organ: str, source: LabelSource, mask: Mask, *, hour: int = 0
    ) -> Label:
        """A mask as import (original) or review (revised) stores it."""
        stored = self.store.write_label(case_id, organ, source, Volume(mask, GEOMETRY))
        voxels = int(np.count_nonzero(mask))
        label = Label(
            case_id=case_id, organ=organ, source=source, path=stored.path, value=1,
            sha256=stored.sha256, voxels=voxels, volume_ml=voxels * GEOMETRY.voxel_ml,
            annotator="anna" if source is LabelSource.REVISED else None,
            created_at=EPOCH + timedelta(hours=hour),
        )  # fmt: skip
        self.catalog.add_labels([label])
        return label

    def add_prediction(
        self,
        case_id: str,
        masks: Mapping[str, Mask],
        models: Sequence[ModelRef] = (UNET, NNUNET),
        *,
        reading: Reading = Reading.PAPER,
        hour: int = 0,
        geometry: VolumeGeometry = GEOMETRY,
    ) -> str:
        """A pseudo label map of the organs of `masks` with its score, in force from now on; returns
        the ensemble."""
        ensemble = ensemble_key(tuple(models))
        after = self.store.result_number(case_id, reading, ensemble) or 0
        path = self.store.pseudo_label_path(case_id, reading, ensemble, after + 1)
        with self.store.new_prediction(case_id, reading, ensemble, after=after) as draft:
            sha256 = write_volume(draft.pseudo_label_path, label_map(masks), geometry)
            draft.result_path.write_text("{}", encoding="utf-8")
        created_at = EPOCH + timedelta(hours=hour)
        ml = {organ: int(np.count_nonzero(m)) * GEOMETRY.voxel_ml for organ, m in masks.items()}
        labels = [
            Label(
                case_id=case_id, organ=organ, source=LabelSource.PSEUDO,
                path=self.store.relative(path), value=ABDOMEN_ATLAS[organ].label, sha256=sha256,
                voxels=int(np.count_nonzero(mask)), volume_ml=ml[organ], models=tuple(models),
                created_at=created_at,
            )
            for organ, mask in masks.items()
        ]  # fmt: skip
        sizes = tuple(
            OrganScore(
                organ=o,
                attention_voxels=1.0,
                attention_ml=1.0,
                pseudo_label_ml=ml[o],
                disagreement=0.1,
                expected_ml=ml[o],
                attended_ml=1.0,
            )
            for o in masks
        )
        score = Score(
            case_id=case_id, reading=reading, ensemble=ensemble, models=tuple(models),
            organs=sizes, number=after + 1, seconds=1.0, created_at=created_at,
        )  # fmt: skip
        self.catalog.record_score(score, labels)
        return ensemble


def open_site(folder: Path) -> LabelledSite:
    """A new site in `folder`; close its catalog."""
    folder.mkdir(parents=True, exist_ok=True)
    catalog = Catalog.open(f"sqlite:///{folder}/catalog.sqlite")
    return LabelledSite(catalog, CaseStore(folder / "store"))


def all_organs(shift: int = 0) -> dict[str, Mask]:
    """A small box for each of the nine organs, none touching another."""
    masks = {}
    for number, organ in enumerate(ABDOMEN_ATLAS.names):
        i, j = 1 + 4 * (number % 3), 1 + 3 * (number // 3)
        masks[organ] = box((i, i + 2), (j, j + 2), (1 + shift, 4 + shift))
    return masks
