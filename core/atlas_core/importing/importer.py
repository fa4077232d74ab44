"""Import: CTs and their original labels, from common folder layouts into store and catalog.

A case is written to the store first and to the catalog last, so an import that was killed at any
moment is completed by the next one. The same CT is never imported twice, whatever the name of its
file and its dataset; only labels that are new are added.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from atlas_core.catalog import Catalog, checked_inputs, record_uids
from atlas_core.errors import (
    AtlasError,
    Conflict,
    InvalidInput,
    NotFound,
    Unavailable,
    UnsupportedVolume,
)
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import AffineSource, read_header, write_pieces
from atlas_core.imaging.dicom_reader import write_series
from atlas_core.importing.candidates import Candidate, shown_name
from atlas_core.importing.case_checks import check_labels, record_scan
from atlas_core.importing.ct_files import CtFile
from atlas_core.importing.dicom_labels import dicom_label_files, reports_of
from atlas_core.importing.label_files import label_files
from atlas_core.importing.layouts import UNPAIRED, discover
from atlas_core.importing.original_labels import LabelFiles, Reports, original_masks
from atlas_core.importing.origins import relatives, uids_of
from atlas_core.importing.paired_organs import MaskPieces
from atlas_core.importing.plausibility import VoxelSurvey
from atlas_core.importing.presets import LabelMap, Preset, preset
from atlas_core.importing.summary import (
    NAMES_SHOWN,
    CandidateOutcome,
    Fate,
    ImportedCase,
    ImportProgress,
    ImportSummary,
    Note,
    left_out_notes,
    summary_of,
)
from atlas_core.organs import OrganScheme
from atlas_core.records import Case, CheckedPart, Dataset, DatasetName, Label, LabelSource
from atlas_core.store import CaseStore

ID_DIGITS: Final = 32
"""Hexadecimal digits of the content's checksum in a case's id: 128 bits, of which no two CTs can be
made to share all (that takes 2⁶⁴ checksums). Cases of old catalogs have 12 and keep their ids."""

WORKERS: Final = 2
"""Cases worked on at once: one is decompressed while another is compressed."""


def import_folder(
    path: Path,
    dataset: str,
    preset_name: str | None = None,
    *,
    catalog: Catalog,
    store: CaseStore,
    licence: str | None = None,
    force: bool = False,
    resample: bool = False,
    affine: AffineSource | None = None,
    pairs: Path | None = None,
    on_progress: Callable[[ImportProgress], None] | None = None,
    workers: int = WORKERS,
) -> ImportSummary:
    """Imports every CT at or below `path`; see `layouts` for what is recognised.

    Args:
        path: a NIfTI file or a folder.
        dataset: name of the dataset they belong to; created if it is new.
        preset_name: preset with the meaning of its label values, or its YAML file (`presets`).
            None: the one that the dataset was imported with before; else our own ids and names, or
            nnU-Net's dataset.json.
        catalog: whose organ scheme says what is an organ.
        licence: of the dataset, where the preset does not say it or says another.
        force: import volumes whose values are not plausible Hounsfield units, with a warning.
        resample: put a label that lies on another grid onto its CT's, and DICOM slices with gantry
            tilt or uneven gaps onto a regular one, instead of refusing them.
        affine: which affine counts where a header has two that give voxels of different size; None:
            such a file is refused.
        pairs: a CSV of CTs and their labels; nothing else is then taken.
        on_progress: called after each candidate, in this thread.
        workers: cases worked on at once.

    Returns:
        What was imported, and what was not and why. One bad file never stops the rest.

    Raises:
        NotFound: nothing at `path`, or no such preset.
        InvalidInput: no volume at all below `path`, a malformed name of the dataset or preset.
        Conflict: the dataset is on record with another licence.
        Unavailable: the store or the catalog cannot be written; earlier cases stay.
    """
    _require_name(dataset)
    known = preset(preset_name) if preset_name else _preset_of(catalog, dataset)
    scheme = catalog.organ_scheme()
    described = known.dataset(dataset, scheme) if known else Dataset(name=dataset)
    if licence is not None:
        _require_licence(catalog, dataset, licence)
        described = described.model_copy(update={"licence": licence})
    found = discover(path, pairs)
    if not found.candidates and not found.set_aside and not found.others:
        raise InvalidInput(
            "nothing to import: the folder is empty",
            case=path.name,
            expected="a folder of NIfTIs, case folders, nnU-Net raw, or DICOM series",
            remedy="name another folder",
        )
    store.sweep()
    catalog.add_dataset(described)
    job = _Import(
        root=path if path.is_dir() else path.parent,
        dataset=dataset,
        meaning=known.within(scheme) if known else None,
        catalog=catalog,
        store=store,
        scheme=scheme,
        force=force,
        resample=resample,
        affine=affine,
    )
    outcomes: list[CandidateOutcome] = []
    # closing: if `on_progress` raises, candidates that have not begun are cancelled
    with closing(_each(job, found.candidates, workers)) as each:
        for outcome in each:
            outcomes.append(outcome)
            if on_progress is not None:
                on_progress(ImportProgress(len(outcomes), len(found.candidates), outcome.source))
    summary = summary_of(dataset, outcomes, found, job.root)
    misspelt = known.misspelt(scheme) if known else ()
    if misspelt:
        why = f"names of the preset that no organ goes by were left out: {', '.join(misspelt)}"
        summary = replace(summary, warnings=(*summary.warnings, Note(path.name, why)))
    if known is None:
        organs = {organ for outcome in outcomes for organ in outcome.organs}
        catalog.add_dataset(Dataset(name=dataset, organs=tuple(sorted(organs))))
        summary = replace(summary, warnings=(*summary.warnings, *left_out_notes(path, outcomes)))
    return summary


def _require_name(dataset: str) -> None:
    try:
        TypeAdapter(DatasetName).validate_python(dataset)
    except ValidationError:
        raise InvalidInput(
            "malformed name of a dataset",
            expected="1 to 63 letters, digits, - and _, the first a letter or digit",
            got=dataset,
            remedy="choose another name",
        ) from None


def _require_licence(catalog: Catalog, dataset: str, licence: str) -> None:
    """What was imported under one licence is not taken for something else later."""
    known = {one.name: one.licence for one in catalog.datasets()}.get(dataset, "")
    if known not in ("", licence):
        raise Conflict(
            f"dataset {dataset} is on record with another licence",
            expected=known,
            got=licence,
            remedy="import what has another licence as another dataset",
        )


def _preset_of(catalog: Catalog, dataset: str) -> Preset | None:
    """The preset that the dataset was imported with before."""
    for known in catalog.datasets():
        if known.name == dataset and known.preset is not None:
            try:
                return preset(known.preset)
            except NotFound:
                raise NotFound(
                    f"dataset {dataset} was imported with preset {known.preset}, a file of yours",
                    remedy="give the file again: --preset FILE",
                ) from None
    return None


def _each(
    job: _Import, candidates: Iterable[Candidate], workers: int
) -> Generator[CandidateOutcome, None, None]:
    """Outcomes in the order of the candidates."""
    with ThreadPoolExecutor(max(1, workers), thread_name_prefix="import") as pool:
        try:
            yield from pool.map(job.run, candidates)
        finally:
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Import:
    """One import: its source, target and options."""

    root: Path
    dataset: str
    meaning: LabelMap | None  # by a preset
    catalog: Catalog
    store: CaseStore
    scheme: OrganScheme
    force: bool
    resample: bool
    affine: AffineSource | None

    def run(self, candidate: Candidate) -> CandidateOutcome:
        """Import one candidate, or record why not."""
        outcome = CandidateOutcome(candidate.name)
        try:
            with self.store.incoming() as scratch:
                ct = CtFile.read(self._as_file(candidate, scratch, outcome), self.affine)
                if self._is_ct(candidate, ct.survey, outcome):
                    self._take(candidate, ct, scratch, outcome)
        except Unavailable:
            raise  # not the fault of this file: the next one would fail too
        except AtlasError as error:
            outcome.refused.append(Note(candidate.name, str(error)))
        except OSError as error:  # files of others raise errors of ours
            raise Unavailable(
                "the case store cannot be written", got=error.strerror, remedy="import again then"
            ) from error
        except Exception as error:
            outcome.refused.append(Note(candidate.name, _unexpected(error)))
        return outcome

    def _as_file(self, candidate: Candidate, scratch: Path, outcome: CandidateOutcome) -> Path:
        """The CT as one file: a DICOM series is written to `scratch`."""
        if isinstance(candidate.ct, Path):
            return candidate.ct
        file = scratch / "series.nii"
        series = candidate.ct
        resampled = write_series(series.files, file, known=series.slices, resample=self.resample)
        if resampled is not None:
            outcome.warnings.append(Note(candidate.name, resampled))
        return file

    def _is_ct(self, candidate: Candidate, survey: VoxelSurvey, outcome: CandidateOutcome) -> bool:
        """False for a loose label map, which is skipped.

        Raises:
            UnsupportedVolume: no Hounsfield units, and not forced.
        """
        if survey.looks_like_labels():
            if candidate.certain:
                raise UnsupportedVolume(
                    "holds a few whole numbers from 0 to 255: label values, no Hounsfield units",
                    got=f"{survey.low:g} to {survey.high:g}",
                    remedy="it is a label: name its CT in --pairs",
                )
            outcome.skipped.append(Note(candidate.name, f"holds label values: {UNPAIRED}"))
            return False
        doubt = survey.hounsfield_doubt()
        if doubt is not None and not self.force:
            raise UnsupportedVolume(
                f"values are not plausible Hounsfield units: {doubt}",
                remedy="it may be an MR; import the original, or pass --force if it is a CT",
            )
        if doubt is not None:
            outcome.warnings.append(Note(candidate.name, f"taken although {doubt}"))
        outcome.warnings.extend(Note(candidate.name, remark) for remark in survey.remarks())
        return True

    def _take(
        self, candidate: Candidate, ct: CtFile, scratch: Path, outcome: CandidateOutcome
    ) -> None:
        """Store first, catalog last."""
        for remark in (*candidate.notes, *ct.warnings):
            outcome.warnings.append(Note(candidate.name, remark))
        content = ct.content_sha256()
        remarks = [note.reason for note in outcome.warnings]
        known = self.catalog.find_case_by_content(content)
        case_id = known.id if known else self._new_id(content)
        if known is None or not self.store.ct_path(case_id).is_file():
            draft = scratch / "draft.nii.gz"
            ct.write(draft)
            self.store.take_ct(case_id, draft)
            if known is not None:
                outcome.warnings.append(Note(candidate.name, "its CT was lost and is restored"))
        labels = list(self._labels(candidate, ct, case_id, scratch, outcome))
        imported = ImportedCase(candidate.name, case_id, tuple(label.organ for label in labels))
        if known is None and self._add(candidate.name, case_id, content, ct, labels):
            outcome.taken = imported
        else:
            self.catalog.add_labels(labels)
            outcome.present = imported
        record_uids(self.catalog, case_id, uids_of(candidate))
        # After it is there: of two copies that come at once, one sees the other. Also of a case
        # whose import ended in between.
        if checked_inputs(self.catalog, case_id, CheckedPart.SCAN) is None:
            copies = self._copies(case_id)
            outcome.warnings += [Note(candidate.name, remark) for remark in copies]
            record_scan(self.catalog, self.catalog.case(case_id), [*remarks, *copies])
        if labels or self.catalog.labels(case_id, LabelSource.ORIGINAL):
            outcome.labels_checked(
                check_labels(self.catalog, self.store, self.catalog.case(case_id))
            )

    def _copies(self, case_id: str) -> list[str]:
        copies = [copy.id for copy in self.catalog.copies_of(self.catalog.case(case_id))]
        related = relatives(self.catalog, case_id, known=copies)[:NAMES_SHOWN]
        if not copies:
            return related
        shown = ", ".join(copies[:NAMES_SHOWN])
        same = f"shows the same scan as {shown}: other axes, header or clipping, the same voxels"
        return [same, *related]

    def _new_id(self, content: str) -> str:
        """The id of a case that the catalog does not have.

        Raises:
            Conflict: the id belongs to another CT, whose files stay as they are.
        """
        case_id = f"{self.dataset}_{content[:ID_DIGITS]}"
        other = self._case_called(case_id)
        # Of the same content, it has just been added by another import, as `_add` finds.
        if other is not None and other.content_sha256 != content:
            raise Conflict(
                "this id belongs to another CT",
                case=case_id,
                expected=other.content_sha256,
                got=content,
                remedy="import it into a dataset of another name",
            )
        return case_id

    def _case_called(self, case_id: str) -> Case | None:
        with contextlib.suppress(NotFound):
            return self.catalog.case(case_id)
        return None

    def _add(
        self, source: str, case_id: str, content: str, ct: CtFile, labels: list[Label]
    ) -> bool:
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
            fingerprint=ct.survey.fingerprint(geometry.shape),
        )
        try:
            return self.catalog.add_case(case, labels)
        except Conflict:
            # The catalog has this CT under the other dataset: these files would never be used.
            # Where the id is another CT's, they are not ours to delete.
            if self._case_called(case_id) is None:
                self.store.delete_case(case_id)
            raise

    def _labels(
        self,
        candidate: Candidate,
        ct: CtFile,
        case_id: str,
        scratch: Path,
        outcome: CandidateOutcome,
    ) -> Iterator[Label]:
        """Writes the masks that are new, one at a time, and yields their records."""
        reports = self._reports(outcome)
        there = {
            label.organ
            for label in self.catalog.labels(case_id, LabelSource.ORIGINAL)
            if self.store.path(label.path).is_file()  # a lost one is written again
        }
        new: set[str] = set()

        def written(files: LabelFiles, reports: Reports) -> Iterator[Label]:
            outcome.left_out |= files.unknown
            if _organs_of(files) <= there | new:
                return  # nothing new: the files need not be read
            for organ, mask in original_masks(
                files, ct, reports, scratch, resample=self.resample, affine=self.affine
            ):
                if organ not in there | new:  # the first original label of an organ stays
                    new.add(organ)
                    yield self._write_label(case_id, organ, mask, ct.geometry, scratch)

        files = label_files(candidate, self.meaning, self.scheme, reports)
        yield from written(files, reports)
        outcome.account(files, there, new)
        frame = None if isinstance(candidate.ct, Path) else candidate.ct.frame
        for file in candidate.objects:
            before = frozenset(there | new)
            try:
                files = dicom_label_files(file, ct.geometry, frame, self.scheme, reports, scratch)
            except AtlasError as error:
                reports.refuse(file, str(error))
                continue
            yield from written(files, reports_of(file, reports))
            outcome.account_object(file, files, before, new - before)

    def _reports(self, outcome: CandidateOutcome) -> Reports:
        def refuse(path: Path, why: str) -> None:
            outcome.fates[path] = (Fate.REFUSED, why)
            outcome.refused.append(Note(self._name(path), why))

        def leave_out(path: Path, why: str) -> None:
            outcome.fates[path] = (Fate.LEFT_OUT, why)
            outcome.warnings.append(Note(self._name(path), why))

        def warn(path: Path, why: str) -> None:
            outcome.warnings.append(Note(self._name(path), why))

        return Reports(refuse, leave_out, warn)

    def _write_label(
        self, case_id: str, organ: str, mask: MaskPieces, grid: VolumeGeometry, scratch: Path
    ) -> Label:
        voxels = 0

        def counted() -> Iterator[NDArray[np.bool_]]:
            nonlocal voxels
            for piece in mask():
                voxels += int(np.count_nonzero(piece))
                yield piece

        draft = scratch / "draft.nii.gz"
        sha256 = write_pieces(draft, counted(), grid, np.uint8)
        stored = self.store.take_label(case_id, organ, LabelSource.ORIGINAL, draft, sha256)
        return Label(
            case_id=case_id,
            organ=organ,
            source=LabelSource.ORIGINAL,
            path=stored.path,
            value=1,
            sha256=stored.sha256,
            voxels=voxels,
            volume_ml=voxels * grid.voxel_ml,
            created_at=datetime.now(UTC),
        )

    def _name(self, path: Path) -> str:
        return shown_name(path, self.root)


def _unexpected(error: Exception) -> str:
    """What to say of an error that nobody foresaw, without its text: that may quote the file."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(where.filename).name}, line {where.lineno}"
    return f"cannot be imported: {type(error).__name__} ({place}); please report it"


def _organs_of(files: LabelFiles) -> set[str]:
    """Organs that the files can contain."""
    meaning = files.meaning
    structures = [meaning.masks[name] for name in files.masks if name in meaning.masks]
    if files.label_map is not None:
        structures += meaning.labels.values()
    return {organ for structure in structures for organ in structure}
