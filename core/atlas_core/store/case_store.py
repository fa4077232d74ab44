"""The case store: one folder with the volumes of every case, and the only place that builds paths.

    cases/<case>/ct.nii.gz
    cases/<case>/labels/<organ>/<source>-<sha12>.nii.gz
                                revised-<sha12>-<token>.nii.gz   one file for each hand-in
    cases/<case>/drafts/<token>.nii.gz
    cases/<case>/derived/<name>                                  can be made again at any time
    cases/<case>/predictions/<reading>/<ensemble>/pseudo_label.nii.gz
                                                  attention/<organ>.nii.gz
                                                  members/<model>.nii.gz
                                                  result.json
    cases/<case>/predictions/<reading>/<ensemble>~<number>/…     from the second result on
    cases/<case>/assembled/<inputs16>/combined_labels.nii.gz
                                      provenance.json
                                      segmentations/<organ>.nii.gz   where asked for
    orphans/cases/…                               hand-ins and drafts that the catalog did not name
    .incoming/<host>.<pid>.<random>/              what is being written

Everything is written under ``.incoming`` and renamed into place when it is complete and on disk: a
reader sees a whole file or folder, or none. A crash leaves at most a folder under ``.incoming``,
which `CaseStore.sweep` removes. Any number of processes, also of several machines on a shared
volume, may write at once.

A case that is scored again keeps the result that it had. Results are numbered from 1, and which one
is in force says the catalog's row of the score.
"""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from atlas_core.atomic_writes import (
    discard_folder,
    is_stale,
    move_file,
    move_folder,
    scratch_folder,
    sync,
    sync_tree,
    write_synced,
)
from atlas_core.errors import ConfigurationError, InvalidInput, NotFound
from atlas_core.imaging import Volume, write_volume
from atlas_core.model_spec import ModelRef
from atlas_core.organs import OrganName
from atlas_core.records import CaseId, LabelSource, Reading

MAX_FOLDER_NAME: Final = 200
"""File systems allow 255 bytes; the rest is left for tools that add a suffix."""

SWEEP_AFTER_HOURS: Final = 24.0
"""No prediction takes a day to write: what is older was left by a crash, on any machine."""


@dataclass(frozen=True)
class StoredLabel:
    """A mask that was written.

    Attributes:
        path: relative to the root of the store, with forward slashes.
        sha256: of the file's bytes.
    """

    path: str
    sha256: str


class PredictionDraft:
    """A prediction that is being written; `CaseStore.new_prediction` makes and publishes it.

    Attributes:
        folder: where to write.
        number: of the result that this will be.
        published: after the ``with`` block: True if this draft became the prediction, False if
            another writer was first (whose files then stand, and this draft is gone).
    """

    def __init__(self, folder: Path, number: int) -> None:
        self.folder = folder
        self.number = number
        self.published = False

    @property
    def pseudo_label_path(self) -> Path:
        """Label map, uint8 with the label ids of the organs."""
        return self.folder / _PSEUDO_LABEL

    def attention_path(self, organ: str) -> Path:
        """Attention map of one organ, uint8 with ``scl_slope`` 1/136."""
        return self.folder / _ATTENTION / f"{_organ(organ)}.nii.gz"

    def member_label_path(self, ref: ModelRef) -> Path:
        """Label map of one model of the ensemble by itself, uint8 with the label ids of the organs,
        cropped to what it labels."""
        name = f"{ref.name}-{ref.version}-{ref.sha256[:8]}"
        return self.folder / _MEMBERS / f"{name}.nii.gz"

    @property
    def result_path(self) -> Path:
        """The numbers; a draft without it is not published."""
        return self.folder / _RESULT


class CaseStore:
    """The folder `root`. Making one touches nothing on disk."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    # Where things are

    def ct_path(self, case_id: str) -> Path:
        """The CT of a case, whether or not it exists."""
        return self._case_dir(case_id) / "ct.nii.gz"

    def label_path(self, case_id: str, organ: str, source: LabelSource, sha256: str) -> Path:
        """A binary mask of one organ; `sha256` is that of the file's bytes."""
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise InvalidInput("malformed checksum", case=case_id, got=sha256)
        name = f"{LabelSource(source).value}-{sha256[:12]}.nii.gz"
        return self._case_dir(case_id) / "labels" / _organ(organ) / name

    def derived_path(self, case_id: str, name: str) -> Path:
        """Something computed from other files of the case; its name says which."""
        if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,150}", name):
            raise InvalidInput("malformed name of a derived file", case=case_id, got=name)
        return self._case_dir(case_id) / "derived" / name

    def prediction_dir(
        self, case_id: str, reading: Reading, ensemble: str, number: int | None = None
    ) -> Path:
        """Folder of a result of one ensemble under one reading; `number` None: of the newest."""
        if number is None:
            number = self.result_number(case_id, reading, ensemble) or 1
        folder = self._case_dir(case_id) / "predictions" / Reading(reading).value
        return folder / (_ensemble_folder(ensemble) + (f"~{number}" if number > 1 else ""))

    def pseudo_label_path(
        self, case_id: str, reading: Reading, ensemble: str, number: int | None = None
    ) -> Path:
        """Label map of all organs, uint8 with their label ids."""
        return self.prediction_dir(case_id, reading, ensemble, number) / _PSEUDO_LABEL

    def member_label_paths(
        self, case_id: str, reading: Reading, ensemble: str, number: int
    ) -> dict[str, Path]:
        """The label map of each model of the ensemble by itself, by a name of the model; see
        `imaging.read_cropped`. One that labels nothing, or was not asked for, has none."""
        folder = self.prediction_dir(case_id, reading, ensemble, number) / _MEMBERS
        return {path.name.removesuffix(".nii.gz"): path for path in sorted(folder.glob("*.nii.gz"))}

    def attention_path(
        self, case_id: str, reading: Reading, ensemble: str, organ: str, number: int | None = None
    ) -> Path:
        """Attention map of one organ, uint8 with ``scl_slope`` 1/136."""
        folder = self.prediction_dir(case_id, reading, ensemble, number)
        return folder / _ATTENTION / f"{_organ(organ)}.nii.gz"

    def result_path(
        self, case_id: str, reading: Reading, ensemble: str, number: int | None = None
    ) -> Path:
        """The numbers of a prediction."""
        return self.prediction_dir(case_id, reading, ensemble, number) / _RESULT

    def assembly_dir(self, case_id: str, inputs_sha256: str) -> Path:
        """Folder of the label map that was assembled from inputs of this checksum."""
        if not re.fullmatch(r"[0-9a-f]{64}", inputs_sha256):
            raise InvalidInput("malformed checksum", case=case_id, got=inputs_sha256)
        return self._case_dir(case_id) / "assembled" / inputs_sha256[:16]

    def assembled_path(self, case_id: str, inputs_sha256: str) -> Path:
        """Assembled label map, uint8 with the label ids of the organs."""
        return self.assembly_dir(case_id, inputs_sha256) / COMBINED_LABELS

    def assembled_mask_path(self, case_id: str, inputs_sha256: str, organ: str) -> Path:
        """Binary mask of one organ out of an assembled label map."""
        folder = self.assembly_dir(case_id, inputs_sha256) / SEGMENTATIONS
        return folder / f"{_organ(organ)}.nii.gz"

    def relative(self, path: Path) -> str:
        """`path` of this store as the catalog keeps it: relative to the root, forward slashes."""
        return path.relative_to(self.root).as_posix()

    def path(self, relative: str) -> Path:
        """The file that the catalog calls `relative`.

        Raises:
            InvalidInput: it would lie outside the store.
        """
        parts = Path(relative).parts
        if not parts or Path(relative).is_absolute() or ".." in parts:
            raise InvalidInput("path leaves the case store", got=relative)
        return self.root.joinpath(*parts)

    def files(self) -> Iterator[Path]:
        """Every file of every case, sorted by path; what is being written is not among them."""
        for folder, subfolders, names in os.walk(self.root / "cases"):
            subfolders.sort()
            for name in sorted(names):
                yield Path(folder, name)

    def hand_ins(self, before: float) -> Iterator[Path]:
        """Every mask that was handed in and every draft, written before a time (seconds since the
        epoch)."""
        for pattern in ("cases/*/labels/*/revised-*.nii.gz", "cases/*/drafts/*.nii.gz"):
            for path in self.root.glob(pattern):
                with contextlib.suppress(FileNotFoundError):  # a draft that is replaced just now
                    if path.stat().st_mtime < before:
                        yield path

    def require_usable(self) -> None:
        """Prove with a small file that the store can be written to; for the start of a process.

        Raises:
            ConfigurationError: it cannot: a read-only or full disk, or missing permissions.
        """
        try:
            with self.incoming() as folder:
                write_synced(folder / "probe", b"\0" * 4096)
        except OSError as error:
            raise ConfigurationError(
                f"the case store {self.root} cannot be written to",
                got=error.strerror,
                remedy="check that its volume is mounted, writable for this user, and not full",
            ) from None

    def has_prediction(self, case_id: str, reading: Reading, ensemble: str) -> bool:
        """Whether that prediction is there (and then it is complete)."""
        return self.result_number(case_id, reading, ensemble) > 0

    def result_number(self, case_id: str, reading: Reading, ensemble: str) -> int:
        """Number of the newest result of that prediction; 0 if there is none."""
        found = [
            number
            for number, folder in self._results(case_id, reading, ensemble)
            if (folder / _RESULT).is_file()
        ]
        return max(found, default=0)

    def left_out(
        self, case_id: str, reading: Reading, ensemble: str, number: int | None = None
    ) -> float:
        """Share of the body, 0..1, that the models of a prediction were not shown, since locating
        ruled organs out there."""
        with contextlib.suppress(FileNotFoundError):
            result = json.loads(self.result_path(case_id, reading, ensemble, number).read_bytes())
            return float(result.get("left_out", 0.0))
        return 0.0

    # Writing

    def write_ct(self, case_id: str, ct: Volume) -> str:
        """Store the CT of a case, losslessly and in its own axis order.

        Returns:
            SHA-256 of the file's bytes, hex.
        """
        with self.incoming() as folder:
            draft = folder / "ct.nii.gz"
            sha256 = write_volume(draft, ct.voxels, ct.geometry)
            self.take_ct(case_id, draft)
        return sha256

    def take_ct(self, case_id: str, draft: Path) -> None:
        """Move a complete CT out of an `incoming` folder to its place."""
        move_file(draft, self.ct_path(case_id))

    def write_label(
        self, case_id: str, organ: str, source: LabelSource, mask: Volume
    ) -> StoredLabel:
        """Store a binary mask (uint8, 0 and 1) on the grid of the case's CT.

        Writing the same mask again gives the same file.
        """
        with self.incoming() as folder:
            draft = folder / "label.nii.gz"
            sha256 = write_volume(draft, mask.voxels, mask.geometry)
            return self.take_label(case_id, organ, source, draft, sha256)

    def take_label(
        self, case_id: str, organ: str, source: LabelSource, draft: Path, sha256: str
    ) -> StoredLabel:
        """Move a complete mask, whose bytes have this checksum, out of an `incoming` folder to its
        place."""
        target = self.label_path(case_id, organ, source, sha256)
        move_file(draft, target)
        return StoredLabel(self.relative(target), sha256)

    def write_submission(self, case_id: str, organ: str, mask: Volume) -> StoredLabel:
        """Store a binary mask that somebody handed in, in a file of its own, also where an equal
        one is stored; whether it is a new version is for `LabelVersions.submit` to say."""
        with self.incoming() as folder:
            draft = folder / "label.nii.gz"
            sha256 = write_volume(draft, mask.voxels, mask.geometry)
            plain = self.label_path(case_id, organ, LabelSource.REVISED, sha256)
            name = f"{plain.name.removesuffix('.nii.gz')}-{secrets.token_hex(4)}.nii.gz"
            target = plain.with_name(name)
            move_file(draft, target)
        return StoredLabel(self.relative(target), sha256)

    def write_draft(self, case_id: str, label_map: Volume) -> StoredLabel:
        """Store somebody's unfinished label map in a file of its own."""
        with self.incoming() as folder:
            draft = folder / "draft.nii.gz"
            sha256 = write_volume(draft, label_map.voxels, label_map.geometry)
            target = self._case_dir(case_id) / "drafts" / f"{secrets.token_hex(8)}.nii.gz"
            move_file(draft, target)
        return StoredLabel(self.relative(target), sha256)

    def write_derived(self, case_id: str, name: str, write: Callable[[Path], object]) -> Path:
        """Make a derived file by calling `write` with the path to write to."""
        target = self.derived_path(case_id, name)
        with self.incoming() as folder:
            draft = folder / target.name
            write(draft)
            sync(draft)
            move_file(draft, target)
        return target

    def incoming(self) -> AbstractContextManager[Path]:
        """A new folder on the store's file system, removed with its content at the end: for what is
        being written, or not checked yet."""
        # Other users of a shared volume, whom the umask may let in, sweep it.
        return scratch_folder(self.root / _INCOMING, mode=0o777)

    @contextmanager
    def new_prediction(
        self, case_id: str, reading: Reading, ensemble: str, *, after: int = 0
    ) -> Iterator[PredictionDraft]:
        """Write a prediction: all of it appears when the block ends, nothing if it fails.

        Of several writers of the same prediction one publishes; to the others
        `PredictionDraft.published` says that it was there already. That is no error.

        Args:
            after: number of the result that it follows, which stays; 0: it is the first.

        Raises:
            NotFound: the block ended without writing ``result.json``.
        """
        number = after + 1
        target = self.prediction_dir(case_id, reading, ensemble, number)
        with self.incoming() as folder:
            draft = PredictionDraft(folder / "prediction", number)
            (draft.folder / _ATTENTION).mkdir(parents=True)
            yield draft
            if not draft.result_path.is_file():
                raise NotFound("the prediction has no result.json", case=case_id)
            sync_tree(draft.folder)
            with contextlib.suppress(FileExistsError):
                move_folder(draft.folder, target)
                draft.published = True

    def write_assembly(
        self, case_id: str, inputs_sha256: str, label_map: Volume, provenance: Callable[[str], str]
    ) -> StoredLabel:
        """Store an assembled label map with its provenance; both appear at once.

        Equal inputs give equal files, so what is there already stays, unless it is damaged.

        Args:
            provenance: called with the checksum of the label map's file; gives the text of
                ``provenance.json``.
        """
        target = self.assembly_dir(case_id, inputs_sha256)
        with self.incoming() as incoming:
            draft = incoming / target.name
            draft.mkdir()
            sha256 = write_volume(draft / COMBINED_LABELS, label_map.voxels, label_map.geometry)
            (draft / PROVENANCE).write_text(provenance(sha256), encoding="utf-8")
            sync_tree(draft)
            try:
                move_folder(draft, target)
            except FileExistsError:
                if not _same_files(draft, target):
                    discard_folder(target, incoming)
                    with contextlib.suppress(FileExistsError):  # another writer mended it as well
                        move_folder(draft, target)
        return StoredLabel(self.relative(target / COMBINED_LABELS), sha256)

    def write_assembled_mask(
        self, case_id: str, inputs_sha256: str, organ: str, mask: Volume
    ) -> Path:
        """Store the mask of one organ beside the label map that it was taken from."""
        target = self.assembled_mask_path(case_id, inputs_sha256, organ)
        with self.incoming() as folder:
            write_volume(folder / target.name, mask.voxels, mask.geometry)
            move_file(folder / target.name, target)
        return target

    # Deleting

    def delete_prediction(self, case_id: str, reading: Reading, ensemble: str) -> bool:
        """Remove all results of one prediction; False if there was none."""
        folders = [folder for _, folder in self._results(case_id, reading, ensemble)]
        return sum(self._delete(folder) for folder in folders) > 0

    def delete_case(self, case_id: str) -> bool:
        """Remove a case with everything in it; False if there was none."""
        return self._delete(self._case_dir(case_id))

    def remove(self, relative: str) -> None:
        """Remove one file that the catalog does not name (any more); nothing if it is not there."""
        self.path(relative).unlink(missing_ok=True)

    def set_aside(self, relative: str) -> None:
        """Move one file that the catalog does not name to ``orphans``."""
        target = self.root / "orphans" / self.path(relative).relative_to(self.root)
        move_file(self.path(relative), target)

    def sweep(self, older_than_hours: float = SWEEP_AFTER_HOURS) -> int:
        """Remove what crashed writers left behind; safe while others write.

        Removes what belongs to a process of this machine that has ended, and what was not written
        to for `older_than_hours`.

        Returns:
            How many folders were removed.
        """
        incoming = self.root / _INCOMING
        if not incoming.is_dir():
            return 0
        stale = [f for f in incoming.iterdir() if is_stale(f, older_than_hours * 3600)]
        for folder in stale:
            shutil.rmtree(folder, ignore_errors=True)
        return len(stale)

    # Internals

    def _case_dir(self, case_id: str) -> Path:
        return self.root / "cases" / _checked(_case_ids(), "case id", case_id)

    def _results(self, case_id: str, reading: Reading, ensemble: str) -> Iterator[tuple[int, Path]]:
        """Number and folder of every result of one prediction."""
        first = self.prediction_dir(case_id, reading, ensemble, 1)
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(first.parent):  # noqa: PTH208  names are enough
                match = re.fullmatch(re.escape(first.name) + r"(?:~([0-9]{1,9}))?", name)
                if match is not None:
                    yield int(match[1] or 1), first.parent / name

    def _delete(self, folder: Path) -> bool:
        with self.incoming() as incoming:
            return discard_folder(folder, incoming)


_INCOMING: Final = ".incoming"
_PSEUDO_LABEL: Final = "pseudo_label.nii.gz"
_ATTENTION: Final = "attention"
_MEMBERS: Final = "members"
_RESULT: Final = "result.json"

COMBINED_LABELS: Final = "combined_labels.nii.gz"
"""Name of an assembled label map, as in the AbdomenAtlas release."""

SEGMENTATIONS: Final = "segmentations"
PROVENANCE: Final = "provenance.json"


@cache
def _case_ids() -> TypeAdapter[str]:
    return TypeAdapter(CaseId)


@cache
def _organ_names() -> TypeAdapter[str]:
    return TypeAdapter(OrganName)


def _checked(rule: TypeAdapter[str], what: str, value: str) -> str:
    """`value` if it is a safe name; names build paths, so nothing else may pass."""
    try:
        return rule.validate_python(value, strict=True)
    except ValidationError as error:
        raise InvalidInput(f"malformed {what}", got=value, expected=_reason(error)) from None


def _reason(error: ValidationError) -> Any:
    return error.errors(include_url=False)[0]["msg"]


def _organ(name: str) -> str:
    return _checked(_organ_names(), "organ name", name)


def _ensemble_folder(ensemble: str) -> str:
    """The ensemble's key as a folder name; keys of many models are too long and are hashed."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_@+.-]*", ensemble):
        raise InvalidInput("malformed ensemble key", got=ensemble)
    if len(ensemble) <= MAX_FOLDER_NAME:
        return ensemble
    return f"ensemble-{hashlib.sha256(ensemble.encode()).hexdigest()}"


def _same_files(folder: Path, other: Path) -> bool:
    """Whether every file of `folder` lies in `other` with the same bytes."""
    names = [path.name for path in folder.iterdir()]
    return all(
        (other / name).is_file() and filecmp.cmp(folder / name, other / name, shallow=False)
        for name in names
    )
