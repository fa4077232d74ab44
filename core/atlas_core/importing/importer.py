"""Import: CTs and their original labels, from common folder layouts into store and catalog.

A case is written to the store first and to the catalog last, so an import that was killed at any
moment is completed by the next one. The same CT is never imported twice, whatever the name of its
file and its dataset; only labels that are new are added.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from atlas_core.catalog import Catalog
from atlas_core.errors import (
    AtlasError,
    Conflict,
    CorruptFile,
    InvalidInput,
    Unavailable,
    UnsupportedVolume,
)
from atlas_core.imaging import Volume, content_sha256, read_header, read_volume
from atlas_core.imaging.dicom_reader import read_series
from atlas_core.importing.layouts import Candidate, SetAside, discover
from atlas_core.importing.original_labels import LabelFiles, Reports, original_masks
from atlas_core.importing.plausibility import hounsfield_doubt, looks_like_labels, narrowed
from atlas_core.importing.presets import Preset, nnunet_map, organs_of, preset, scheme_map
from atlas_core.organs import ABDOMEN_ATLAS, OrganScheme
from atlas_core.records import Case, Dataset, Label, LabelSource
from atlas_core.store import CaseStore

NAMES_SHOWN: Final = 8
"""Limit of the names that a warning lists."""

WORKERS: Final = 2
"""Cases worked on at once: one is decompressed while another is compressed. Each holds its CT in
memory."""


@dataclass(frozen=True)
class ImportedCase:
    """A CT that is in the catalog now.

    Attributes:
        source: imported file or folder, relative to what the user passed.
        case_id: its case.
        organs: organs whose original labels this import added.
    """

    source: str
    case_id: str
    organs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Note:
    """A file that was refused or skipped, or deserves a look.

    Attributes:
        source: file or folder, relative to what the user passed.
        reason: why, with the remedy.
    """

    source: str
    reason: str


@dataclass(frozen=True)
class ImportSummary:
    """What an import did.

    Attributes:
        dataset: that the cases were imported into.
        taken: new cases.
        present: cases that were in the catalog before.
        refused: CTs and label files that could not be imported. The CT of a refused label is.
        skipped: files that are not CTs, such as label maps without a CT.
        warnings: files that were imported but deserve a look.
    """

    dataset: str
    taken: tuple[ImportedCase, ...] = ()
    present: tuple[ImportedCase, ...] = ()
    refused: tuple[Note, ...] = ()
    skipped: tuple[Note, ...] = ()
    warnings: tuple[Note, ...] = ()


@dataclass(frozen=True)
class ImportProgress:
    """How far an import is: `done` of `total` candidates, the last of which was `source`."""

    done: int
    total: int
    source: str


def import_folder(
    path: Path,
    dataset: str,
    preset_name: str | None = None,
    *,
    catalog: Catalog,
    store: CaseStore,
    scheme: OrganScheme = ABDOMEN_ATLAS,
    force: bool = False,
    resample: bool = False,
    on_progress: Callable[[ImportProgress], None] | None = None,
    workers: int = WORKERS,
) -> ImportSummary:
    """Imports every CT at or below `path`; see `layouts` for what is recognised.

    Args:
        path: a NIfTI file or a folder.
        dataset: name of the dataset they belong to; created if it is new.
        preset_name: preset with the meaning of its label values (`presets`). None: the one that the
            dataset was imported with before; else our own ids and names, or nnU-Net's dataset.json.
        scheme: organs of this site.
        force: import volumes whose values are not plausible Hounsfield units, with a warning.
        resample: put a label that lies on another grid onto its CT's instead of refusing it.
        on_progress: called after each candidate, in this thread.
        workers: cases worked on at once.

    Returns:
        What was imported, and what was not and why. One bad file never stops the rest.

    Raises:
        NotFound: nothing at `path`, or no such preset.
        InvalidInput: no volume at all below `path`.
        Unavailable: the store or the catalog cannot be written; earlier cases stay.
    """
    known = preset(preset_name) if preset_name else _preset_of(catalog, dataset)
    found = discover(path)
    if not found.candidates and not found.set_aside:
        raise InvalidInput(
            "nothing to import: no NIfTI file and no DICOM series",
            case=path.name,
            expected="a folder of NIfTIs, case folders, nnU-Net raw, or DICOM series",
        )
    store.sweep()
    catalog.add_dataset(known.dataset(dataset, scheme) if known else Dataset(name=dataset))
    job = _Import(
        root=path if path.is_dir() else path.parent,
        dataset=dataset,
        preset=known,
        catalog=catalog,
        store=store,
        scheme=scheme,
        force=force,
        resample=resample,
    )
    outcomes: list[_Outcome] = []
    # closing: if `on_progress` raises, candidates that have not begun are cancelled
    with closing(_each(job, found.candidates, workers)) as each:
        for outcome in each:
            outcomes.append(outcome)
            if on_progress is not None:
                on_progress(ImportProgress(len(outcomes), len(found.candidates), outcome.source))
    summary = _summary(dataset, outcomes, found.set_aside)
    if known is None:
        organs = {organ for outcome in outcomes for organ in outcome.organs}
        catalog.add_dataset(Dataset(name=dataset, organs=tuple(sorted(organs))))
        summary = replace(summary, warnings=(*summary.warnings, *_left_out(path, outcomes)))
    return summary


def _preset_of(catalog: Catalog, dataset: str) -> Preset | None:
    """The preset that the dataset was imported with before."""
    for known in catalog.datasets():
        if known.name == dataset and known.preset is not None:
            return preset(known.preset)
    return None


def _each(
    job: _Import, candidates: Iterable[Candidate], workers: int
) -> Generator[_Outcome, None, None]:
    """Outcomes in the order of the candidates."""
    with ThreadPoolExecutor(max(1, workers), thread_name_prefix="import") as pool:
        try:
            yield from pool.map(job.run, candidates)
        finally:
            pool.shutdown(cancel_futures=True)


@dataclass
class _Outcome:
    """Outcome of one candidate."""

    source: str
    taken: ImportedCase | None = None
    present: ImportedCase | None = None
    refused: list[Note] = field(default_factory=list)
    skipped: list[Note] = field(default_factory=list)
    warnings: list[Note] = field(default_factory=list)
    left_out: frozenset[str] = frozenset()  # names of masks that are not organs of the scheme

    @property
    def organs(self) -> tuple[str, ...]:
        """Original labels that were taken."""
        imported = self.taken or self.present
        return imported.organs if imported else ()


def _summary(
    dataset: str, outcomes: list[_Outcome], set_aside: tuple[SetAside, ...]
) -> ImportSummary:
    return ImportSummary(
        dataset=dataset,
        taken=tuple(o.taken for o in outcomes if o.taken is not None),
        present=tuple(o.present for o in outcomes if o.present is not None),
        refused=tuple(note for o in outcomes for note in o.refused),
        skipped=tuple(
            [note for o in outcomes for note in o.skipped]
            + [Note(aside.name, aside.reason) for aside in set_aside]
        ),
        warnings=tuple(note for o in outcomes for note in o.warnings),
    )


def _left_out(path: Path, outcomes: list[_Outcome]) -> list[Note]:
    """One warning for all cases about masks with undeclared names."""
    names = sorted({name for outcome in outcomes for name in outcome.left_out})
    if not names:
        return []
    cases = sum(bool(outcome.left_out) for outcome in outcomes)
    shown = ", ".join(names[:NAMES_SHOWN]) + (" …" if len(names) > NAMES_SHOWN else "")
    why = f"masks of {cases} cases are not called after an organ and were left out: {shown}"
    return [Note(path.name, f"{why}; a preset may know them")]


@dataclass(frozen=True)
class _Import:
    """One import: its source, target and options."""

    root: Path
    dataset: str
    preset: Preset | None
    catalog: Catalog
    store: CaseStore
    scheme: OrganScheme
    force: bool
    resample: bool

    def run(self, candidate: Candidate) -> _Outcome:
        """Import one candidate, or record why not."""
        outcome = _Outcome(candidate.name)
        try:
            ct = _read_ct(candidate)
            if self._is_ct(candidate, ct, outcome):
                self._take(candidate, ct, outcome)
        except Unavailable:
            raise  # not the fault of this file: the next one would fail too
        except AtlasError as error:
            outcome.refused.append(Note(candidate.name, str(error)))
        except OSError as error:
            raise Unavailable(
                "the case store cannot be written", got=error.strerror, remedy="import again then"
            ) from error
        return outcome

    def _is_ct(self, candidate: Candidate, ct: Volume, outcome: _Outcome) -> bool:
        """False for a loose label map, which is skipped.

        Raises:
            UnsupportedVolume: no Hounsfield units, and not forced.
        """
        if looks_like_labels(ct.voxels):
            reason = "holds label values, not Hounsfield units"
            if candidate.certain:
                raise UnsupportedVolume(reason)
            outcome.skipped.append(Note(candidate.name, reason))
            return False
        doubt = hounsfield_doubt(ct.voxels)
        if doubt is not None and not self.force:
            raise UnsupportedVolume(
                f"values are not plausible Hounsfield units: {doubt}",
                remedy="this may be an MR; pass --force if it is a CT all the same",
            )
        if doubt is not None:
            outcome.warnings.append(Note(candidate.name, f"taken although {doubt}"))
        return True

    def _take(self, candidate: Candidate, ct: Volume, outcome: _Outcome) -> None:
        """Store first, catalog last."""
        content = content_sha256(ct)
        known = self.catalog.find_case_by_content(content)
        case_id = known.id if known else f"{self.dataset}_{content[:12]}"
        if known is None or not self.store.ct_path(case_id).is_file():
            self.store.write_ct(case_id, Volume(narrowed(ct.voxels), ct.geometry))
            if known is not None:
                outcome.warnings.append(Note(candidate.name, "its CT was lost and is restored"))
        labels = list(self._labels(candidate, ct, case_id, outcome))
        imported = ImportedCase(candidate.name, case_id, tuple(label.organ for label in labels))
        if known is None and self._add(candidate.name, case_id, content, labels):
            outcome.taken = imported
        else:
            self.catalog.add_labels(labels)
            outcome.present = imported

    def _add(self, source: str, case_id: str, content: str, labels: list[Label]) -> bool:
        """Registers the case; False if another import has just registered it.

        Raises:
            Conflict: another import has just taken the same CT into another dataset.
        """
        geometry = read_header(self.store.ct_path(case_id)).geometry
        case = Case(
            id=case_id,
            dataset=self.dataset,
            content_sha256=content,
            shape=geometry.shape,
            affine=geometry.affine,
            source=source,
            imported_at=datetime.now(UTC),
        )
        try:
            return self.catalog.add_case(case, labels)
        except Conflict:
            # The catalog has this CT under the other dataset: these files would never be used.
            self.store.delete_case(case_id)
            raise

    def _labels(
        self, candidate: Candidate, ct: Volume, case_id: str, outcome: _Outcome
    ) -> Iterator[Label]:
        """Writes the masks that are new, one at a time, and yields their records."""
        files = self._label_files(candidate, outcome)
        there = {
            label.organ
            for label in self.catalog.labels(case_id, LabelSource.ORIGINAL)
            if self.store.path(label.path).is_file()  # a lost one is written again
        }
        if files is None:
            return
        outcome.left_out = frozenset(set(files.masks) - set(files.meaning.masks))
        if _organs_of(files) <= there:
            return  # nothing new: the files need not be read
        reports = Reports(
            refuse=lambda path, why: outcome.refused.append(Note(self._name(path), why)),
            warn=lambda path, why: outcome.warnings.append(Note(self._name(path), why)),
        )
        for organ, mask in original_masks(files, ct, reports, resample=self.resample):
            if organ not in there:  # the first original label of an organ stays
                yield self._write_label(case_id, organ, mask, ct)

    def _write_label(self, case_id: str, organ: str, mask: NDArray[np.bool_], ct: Volume) -> Label:
        volume = Volume(mask.view(np.uint8), ct.geometry)
        stored = self.store.write_label(case_id, organ, LabelSource.ORIGINAL, volume)
        voxels = int(np.count_nonzero(mask))
        return Label(
            case_id=case_id,
            organ=organ,
            source=LabelSource.ORIGINAL,
            path=stored.path,
            value=1,
            sha256=stored.sha256,
            voxels=voxels,
            volume_ml=voxels * ct.geometry.voxel_ml,
            created_at=datetime.now(UTC),
        )

    def _label_files(self, candidate: Candidate, outcome: _Outcome) -> LabelFiles | None:
        """The candidate's label files and what they mean; None if there are none."""
        label_map, meaning = candidate.label_map, scheme_map(self.scheme)
        if not candidate.masks and label_map is None:
            return None
        if self.preset is not None:
            return LabelFiles(candidate.masks, label_map, self.preset.within(self.scheme))
        if label_map is not None and candidate.label_names is not None:
            try:
                text = candidate.label_names.read_text(encoding="utf-8")
                return LabelFiles(candidate.masks, label_map, nnunet_map(text, self.scheme))
            except (OSError, UnicodeDecodeError, InvalidInput) as error:
                outcome.refused.append(Note(self._name(candidate.label_names), str(error)))
                return None
        if label_map is not None and not candidate.our_ids:
            why = "not taken: nothing says what its values mean; pass --preset"
            outcome.warnings.append(Note(self._name(label_map), why))
            label_map = None
        return LabelFiles(candidate.masks, label_map, meaning)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _read_ct(candidate: Candidate) -> Volume:
    try:
        if isinstance(candidate.ct, Path):
            read_header(candidate.ct).geometry.require_bounded()  # before its voxels take memory
            return read_volume(candidate.ct)
        ct = read_series(candidate.ct)
        ct.geometry.require_bounded()
        return ct
    except OSError as error:
        raise CorruptFile("cannot be read", got=error.strerror) from error


def _organs_of(files: LabelFiles) -> set[str]:
    """Organs that the files can contain."""
    meaning = files.meaning
    structures = [meaning.masks[name] for name in files.masks if name in meaning.masks]
    if files.label_map is not None:
        structures += meaning.labels.values()
    return organs_of(structures)
