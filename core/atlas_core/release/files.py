"""The files of a release: label maps, masks, tables, card and checksums.

The same plan over the same store gives the same bytes: no file holds a time or a random name. None
says where a case comes from but by dataset and licence: file names of an import may hold patients'
names. `private_mapping` does, and is no part of a release.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from atlas_core.assembly import read_assembled
from atlas_core.atomic_writes import sync, write_synced
from atlas_core.errors import CorruptFile, InvalidInput, NotFound
from atlas_core.imaging import write_volume
from atlas_core.organs import OrganScheme
from atlas_core.release.card import release_card
from atlas_core.release.plan import CtFiles, ReleasedCase, ReleaseFormat, ReleasePlan
from atlas_core.release.splits import Split
from atlas_core.release.statistics import volume_statistics
from atlas_core.store import COMBINED_LABELS, SEGMENTATIONS, CaseStore

CHECKSUMS: Final = "SHA256SUMS"
CARD: Final = "README.md"


@dataclass(frozen=True)
class WrittenFile:
    """One file of a release.

    Attributes:
        path: relative to the release, forward slashes.
        sha256: of its bytes.
    """

    path: str
    sha256: str


def write_case(
    folder: Path, released: ReleasedCase, plan: ReleasePlan, store: CaseStore
) -> tuple[WrittenFile, ...]:
    """Write the files of one case into the release `folder`.

    Raises:
        NotFound, CorruptFile: the assembled map or the CT is missing or damaged.
        GridMismatch: the map lies on another grid than the CT.
    """
    if plan.options.format is ReleaseFormat.NNUNET:
        return tuple(_nnunet_case(folder, released, plan, store))
    return tuple(_atlas_case(folder, released, plan, store))


def write_tables(
    folder: Path, plan: ReleasePlan, cases: Iterable[WrittenFile]
) -> tuple[WrittenFile, ...]:
    """Write the files that describe the whole release, the checksums last.

    Args:
        cases: what `write_case` wrote.
    """
    texts: dict[str, str] = {
        "cases.csv": _csv(_case_rows(plan)),
        "provenance.csv": _csv(_provenance_rows(plan)),
        "organ_volumes.csv": _csv([row.as_row() for row in volume_statistics(plan)]),
        CARD: release_card(plan),
    }
    for split in Split:
        numbers = [case.number for case in plan.cases if case.split is split]
        texts[f"splits/{split.value}.txt"] = "".join(f"{number}\n" for number in numbers)
    if plan.options.format is ReleaseFormat.NNUNET:
        texts["dataset.json"] = _json(_dataset_json(plan))
        texts["splits_final.json"] = _json([_fold(plan)])
    (folder / "splits").mkdir()
    written = []
    for name, text in texts.items():
        content = text.encode()
        write_synced(folder / name, content)
        written.append(WrittenFile(name, hashlib.sha256(content).hexdigest()))
    every = sorted((*cases, *written), key=lambda file: file.path)
    lines = "".join(f"{file.sha256}  {file.path}\n" for file in every)
    write_synced(folder / CHECKSUMS, lines.encode())
    return tuple(every)


def private_mapping(plan: ReleasePlan, store: CaseStore) -> str:
    """Which case of this site each case of the release is, and where it came from; as CSV, for the
    site alone."""
    return _csv(
        [
            {
                "id": released.number,
                "case": released.case.id,
                "dataset": released.case.dataset,
                "source": released.case.source,
                "ct_path": store.relative(store.ct_path(released.case.id)),
            }
            for released in plan.cases
        ]
    )


def require_writable_as(plan: ReleasePlan) -> None:
    """Refuse label ids that the format cannot hold.

    Raises:
        InvalidInput: nnU-Net requires 1, 2, 3, … without a gap.
    """
    labels = sorted(plan.scheme.labels)
    if plan.options.format is ReleaseFormat.NNUNET and labels != [*range(1, len(labels) + 1)]:
        raise InvalidInput(
            "nnU-Net wants label ids without a gap", expected=f"1 to {len(labels)}", got=labels
        )


def _atlas_case(
    folder: Path, released: ReleasedCase, plan: ReleasePlan, store: CaseStore
) -> Iterator[WrittenFile]:
    case, home = released.case, folder / released.number
    (home / SEGMENTATIONS).mkdir(parents=True)
    volume = read_assembled(store, case, released.assembly)
    _require_recorded_sizes(released, volume.voxels, plan.scheme)
    yield _copy(store.path(released.assembly.path), home / COMBINED_LABELS, folder)
    for organ in plan.scheme:
        path = home / SEGMENTATIONS / f"{organ.name}.nii.gz"
        mask = (volume.voxels == organ.label).view(np.uint8)
        sha256 = write_volume(path, mask, case.geometry)
        yield WrittenFile(path.relative_to(folder).as_posix(), sha256)
    yield from _ct(store.ct_path(case.id), home / "ct.nii.gz", folder, plan.options.cts)


def _nnunet_case(
    folder: Path, released: ReleasedCase, plan: ReleasePlan, store: CaseStore
) -> Iterator[WrittenFile]:
    kind = "Ts" if released.split is Split.TEST else "Tr"
    labels, images = folder / f"labels{kind}", folder / f"images{kind}"
    labels.mkdir(exist_ok=True)
    volume = read_assembled(store, released.case, released.assembly)
    _require_recorded_sizes(released, volume.voxels, plan.scheme)
    target = labels / f"{released.number}.nii.gz"
    yield _copy(store.path(released.assembly.path), target, folder)
    ct = store.ct_path(released.case.id)
    if plan.options.cts is not CtFiles.NONE:
        images.mkdir(exist_ok=True)
    yield from _ct(ct, images / f"{released.number}_0000.nii.gz", folder, plan.options.cts)


def _require_recorded_sizes(released: ReleasedCase, voxels: Any, scheme: OrganScheme) -> None:
    """Refuse a map in which an organ has another number of voxels than on record."""
    counts = np.zeros(256, np.int64)
    for k in range(voxels.shape[2]):
        counts += np.bincount(voxels[..., k].ravel(order="K"), minlength=256)
    for organ in scheme:
        expected = released.assembly.by_organ[organ.name].voxels
        if int(counts[organ.label]) != expected:
            raise CorruptFile(
                f"the assembled map has another {organ.name} than its record",
                case=released.case.id,
                expected=f"{expected} voxels",
                got=int(counts[organ.label]),
                remedy="run `atlasloop assemble --force` for this case",
            )


def _ct(source: Path, target: Path, folder: Path, cts: CtFiles) -> Iterator[WrittenFile]:
    if cts is CtFiles.COPY:
        yield _copy(source, target, folder)
    elif cts is CtFiles.LINK:
        target.symlink_to(source.resolve())


def _copy(source: Path, target: Path, folder: Path) -> WrittenFile:
    try:
        shutil.copyfile(source, target)
    except FileNotFoundError:
        raise NotFound(
            f"{source.name} is gone from the case store", remedy="release again: it will be listed"
        ) from None
    sync(target)
    with target.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return WrittenFile(target.relative_to(folder).as_posix(), sha256)


def _case_rows(plan: ReleasePlan) -> list[dict[str, object]]:
    licences = {dataset.name: dataset.licence for dataset in plan.datasets}
    return [
        {
            "id": released.number,
            "dataset": released.case.dataset,
            "licence": licences[released.case.dataset],
            "split": released.split.value,
            # By this, whoever has the CT finds its masks.
            "content_sha256": released.case.content_sha256,
            "shape": " ".join(str(n) for n in released.case.shape),
            "spacing_mm": " ".join(f"{mm:.4f}" for mm in released.case.geometry.spacing_mm),
        }
        for released in plan.cases
    ]


def _provenance_rows(plan: ReleasePlan) -> list[dict[str, object]]:
    """Where every mask comes from. Annotators are not named."""
    return [
        {
            "id": released.number,
            "organ": name,
            "source": organ.source.value,
            "models": " ".join(str(ref) for ref in organ.models),
            "label_sha256": organ.label_sha256,
            "voxels": organ.voxels,
            "ml": f"{organ.volume_ml:.3f}",
            "overlaps": organ.overlaps,
            "removed_voxels": organ.removed_voxels,
        }
        for released in plan.cases
        for name in plan.scheme.names
        if (organ := released.assembly.by_organ[name])
    ]


def _dataset_json(plan: ReleasePlan) -> Mapping[str, Any]:
    return {
        "name": plan.options.name,
        "channel_names": {"0": "CT"},
        "labels": {"background": 0} | {organ.name: organ.label for organ in plan.scheme},
        "numTraining": sum(case.split is not Split.TEST for case in plan.cases),
        "file_ending": ".nii.gz",
    }


def _fold(plan: ReleasePlan) -> Mapping[str, Sequence[str]]:
    """The split of training and validation cases, as one fold of nnU-Net."""
    return {
        key: [case.number for case in plan.cases if case.split is split]
        for key, split in (("train", Split.TRAIN), ("val", Split.VALIDATION))
    }


def _json(value: object) -> str:
    return json.dumps(value, indent=2) + "\n"


def _csv(rows: Sequence[Mapping[str, object]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
