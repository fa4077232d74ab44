"""Images on their way in: de-identified, kept apart by series, and imported when a series is whole.

Order of every write: the vault, then the file, then the catalog. Whatever is killed in between is
done again by the next image, or the next start, with the same outcome.
"""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import shutil
import time
from collections.abc import Callable, Collection
from enum import StrEnum
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.tag import BaseTag
from pydicom.uid import ExplicitVRLittleEndian

from atlas_core.atomic_writes import make_folders, replace_file
from atlas_core.catalog import Catalog
from atlas_core.errors import (
    AtlasError,
    ConfigurationError,
    Conflict,
    LimitExceeded,
    NotFound,
    Unavailable,
    UnsupportedVolume,
)
from atlas_core.importing import ImportSummary, import_folder
from atlas_core.pacs.deidentification import Deidentified, deidentified, require_takeable
from atlas_core.pacs.transfers import Transfer, Transfers, TransferState
from atlas_core.pacs.vault import SealedImage, Vault
from atlas_core.store import CaseStore

MAX_IMAGES: Final = 20_000
"""Images of one series that are kept; a CT of the whole body in thin slices has 3,000."""

PIXEL_BOUND: Final = ("PixelData", "FloatPixelData", "DoubleFloatPixelData", "IconImageSequence")

log = logging.getLogger(__name__)


class Receipt(StrEnum):
    """What became of one image."""

    KEPT = "kept"
    KNOWN = "known"
    """It is here already, or its series is a case."""


class Inbox:
    """Series that are being received. Safe to share between threads and processes.

    Attributes:
        root: folder of the series that are not imported yet; holds nothing of a patient.
        vault: what knows whose they are.
        transfers: where each series stands.
        dataset: that series become cases of, unless they were asked for another one.
    """

    def __init__(
        self, root: Path, vault: Vault, catalog: Catalog, store: CaseStore, dataset: str
    ) -> None:
        """
        Args:
            dataset: that series become cases of, unless they were asked for another one.

        Raises:
            ConfigurationError: the vault is not the one that the series on record came in with.
        """
        self.root = root
        self.vault = vault
        self.transfers = Transfers(catalog)
        self._catalog = catalog
        self._store = store
        self.dataset = dataset
        make_folders(root, mode=0o700)
        root.chmod(0o700)
        self._require_same_vault()

    def _require_same_vault(self) -> None:
        for transfer in self.transfers.all()[:1]:
            try:
                self.vault.original(transfer.series)
            except NotFound:
                raise ConfigurationError(
                    "the vault does not know the series on record: it is another one, or a new one",
                    expected="the vault that they came in with",
                    remedy="set ATLASLOOP_PACS_VAULT_URL, or bring the vault back from its backup",
                ) from None

    def ask(
        self,
        series: str,
        study: str,
        patient: str,
        *,
        issuer: str = "",
        dataset: str | None = None,
        expected: int | None = None,
        again: bool = False,
    ) -> Transfer:
        """Put a series that a PACS has on record, before any of its images is here.

        Args:
            series: SeriesInstanceUID, as the others here at the PACS.
            study: StudyInstanceUID.
            patient: PatientID.
            issuer: IssuerOfPatientID.
            dataset: that it becomes a case of.
            expected: images that the PACS says it has.
            again: take all of its images anew, also if it is a case.
        """
        pseudonyms = self.vault.pseudonyms
        names = {
            pseudonyms.uid(series): series,
            pseudonyms.uid(study): study,
            pseudonyms.patient(patient, issuer): patient,
        }
        self.vault.name(names)
        one, its_study, whose = names
        known = self.transfers.ask(
            Transfer(
                series=one,
                study=its_study,
                patient=whose,
                dataset=dataset or self.dataset,
                expected=expected,
            )
        )
        if again:
            self.vault.forget_images(one)
            shutil.rmtree(self._folder(one), ignore_errors=True)
            self._fault(one).unlink(missing_ok=True)
            return self.transfers.note(
                one, state=TransferState.ASKED.value, reason="", expected=expected
            )
        if known.expected != expected and expected is not None:
            changes: dict[str, object] = {"expected": expected}
            if known.state is TransferState.IMPORTED and expected > len(self.vault.images(one)):
                changes |= _changed(f"the PACS has {expected} images of it now")
            known = self.transfers.note(one, **changes)
        return known

    def take(self, image: Dataset) -> Receipt:
        """Keep one image, de-identified.

        Args:
            image: with its `file_meta`, as it came.

        Raises:
            UnsupportedVolume: it is not taken at all; its series, if it has one, is refused.
            CorruptFile: its header cannot be written again.
            Conflict: an image with other pixels came under the same SOPInstanceUID.
            LimitExceeded: too many images in its series.
            Unavailable: the disk is full; send it again when it is not.
        """
        try:
            require_takeable(image)
        except UnsupportedVolume as error:
            self._refuse(image, str(error))
            raise
        done = deidentified(image, self.vault.pseudonyms)
        transfer = self._on_record(done.dataset)
        sealed = _sealed(image, done)
        try:
            known = self.vault.seal(sealed)
            if known not in (None, sealed.pixels_sha256):
                raise Conflict(
                    "an image with other pixels came under the same SOP Instance UID",
                    case=sealed.series,
                    remedy="mend it at its source, then pull the series with --again",
                )
            if known is not None and transfer.state in _SETTLED:
                return Receipt.KNOWN
            return self._keep(transfer, sealed, done)
        except (Conflict, LimitExceeded) as error:
            self._note_fault(transfer, error.what)
            raise
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            why = "the disk of the inbox is full" if full else "the inbox cannot be written"
            self.transfers.note(transfer.series, reason=why)
            raise Unavailable(
                why, got=error.strerror, remedy="make room, then send or pull it again"
            ) from None

    def _keep(self, transfer: Transfer, image: SealedImage, done: Deidentified) -> Receipt:
        folder = self._folder(image.series)
        path = folder / f"{image.image}.dcm"
        if path.exists():
            return Receipt.KNOWN
        first = not folder.is_dir()
        make_folders(folder, mode=0o700)
        if self.count(image.series) >= MAX_IMAGES:
            raise LimitExceeded("series has too many images", expected=MAX_IMAGES)
        file = io.BytesIO()
        done.dataset.save_as(file, enforce_file_format=True)
        replace_file(path, file.getbuffer(), mode=0o600)
        if transfer.state is TransferState.IMPORTED or (
            transfer.state is TransferState.CHANGED and first
        ):
            why = "further images came after its import: send or pull the whole series again"
            self.transfers.note(image.series, **_changed(why))
        elif (
            transfer.state is not TransferState.CHANGED
            and first
            and not self._is_doubtful(image.series)
        ):
            self.transfers.note(image.series, state=TransferState.RECEIVING.value, reason="")
        if first:
            log.info("series %s: removed or replaced %s", image.series, _by_tag(done.removed))
        return Receipt.KEPT

    def _note_fault(self, transfer: Transfer, why: str) -> None:
        """Nothing of a doubtful series is imported until it is asked for again; its case stays."""
        replace_file(self._fault(transfer.series), b"", mode=0o600)
        case = transfer.case_id is not None
        state = TransferState.CHANGED if case else TransferState.REFUSED
        self.transfers.note(transfer.series, state=state.value, reason=why)

    def _refuse(self, image: Dataset, why: str) -> None:
        series = str(image.get("SeriesInstanceUID") or "")
        if series:
            transfer = self.ask(
                series,
                str(image.get("StudyInstanceUID") or ""),
                str(image.get("PatientID") or ""),
                issuer=str(image.get("IssuerOfPatientID") or ""),
            )
            self._note_fault(transfer, why)

    def _on_record(self, image: Dataset) -> Transfer:
        return self.transfers.ask(
            Transfer(
                series=str(image.SeriesInstanceUID),
                study=str(image.StudyInstanceUID),
                patient=str(image.PatientID),
                dataset=self.dataset,
            )
        )

    # --- whole series ---

    def staged(self, series: str) -> frozenset[str]:
        """Pseudonyms of the images of a series that are here."""
        return frozenset(path.stem for path in self._folder(series).glob("*.dcm"))

    def count(self, series: str) -> int:
        """How many images of a series are here."""
        return len(self.staged(series))

    def waiting(self) -> list[str]:
        """Series of which images are here, but for doubtful ones."""
        names = sorted(path.name for path in self.root.iterdir() if path.is_dir())
        return [name for name in names if self.staged(name) and not self._is_doubtful(name)]

    def quiet_s(self, series: str) -> float:
        """Seconds since the last image of a series was written."""
        return time.time() - self._folder(series).stat().st_mtime

    def missing(self, transfer: Transfer) -> str:
        """What a series lacks to be whole, in words; empty: nothing."""
        here = self.staged(transfer.series)
        lost = len(self.vault.images(transfer.series) - here)
        if transfer.expected is not None and len(here) < transfer.expected:
            return f"{len(here)} of {transfer.expected} images are here"
        return f"{lost} of its images came before and are no longer here" if lost else ""

    def take_in(self, series: str) -> Transfer:
        """Import a series if all of it is here; what is missing stands in its reason otherwise.

        Raises:
            Unavailable: the case store or the catalog cannot be written; it goes on with the next
                call.
        """
        lock = FileLock(self.root / f".{series}.lock")
        try:
            with lock.acquire(blocking=False):
                return self._take_in(series)
        except Timeout:  # another process is at it
            return self.transfers.of_series(series)

    def _take_in(self, series: str) -> Transfer:
        transfer = self.transfers.of_series(series)
        if not self.staged(series) or self._is_doubtful(series):
            return transfer
        if lacking := self.missing(transfer):
            if transfer.state is TransferState.CHANGED:
                return transfer
            if (transfer.state, transfer.reason) == (TransferState.RECEIVING, lacking):
                return transfer
            state = TransferState.RECEIVING.value
            return self.transfers.note(series, state=state, reason=lacking)
        self.transfers.note(series, state=TransferState.RECEIVED.value, reason="")
        try:
            summary = import_folder(
                self._folder(series),
                transfer.dataset,
                catalog=self._catalog,
                store=self._store,
            )
        except Unavailable as error:
            self.transfers.note(series, reason=error.what)
            raise
        except AtlasError as error:
            return self._settle(series, None, str(error))
        cases = [case.case_id for case in (*summary.taken, *summary.present)]
        return self._settle(series, cases[0] if cases else None, _reason(summary, cases))

    def _settle(self, series: str, case_id: str | None, reason: str) -> Transfer:
        state = TransferState.IMPORTED if case_id else TransferState.REFUSED
        changes = {"state": state.value, "reason": reason, "case_id": case_id}
        transfer = self.transfers.note(series, **changes)
        shutil.rmtree(self._folder(series), ignore_errors=True)
        return transfer

    def take_in_quiet(
        self, quiet_s: float, on_done: Callable[[Transfer], None] = lambda transfer: None
    ) -> None:
        """Import every series of which nothing came for `quiet_s` seconds and that lacks nothing.

        Args:
            on_done: called with each series that stands elsewhere now.

        Raises:
            Unavailable: as `take_in`.
        """
        for series in self.waiting():
            if self.quiet_s(series) >= quiet_s:
                before, after = self.transfers.of_series(series), self.take_in(series)
                if after != before:
                    on_done(after)

    def _folder(self, series: str) -> Path:
        return self.root / series

    def _fault(self, series: str) -> Path:
        return self.root / f"{series}.fault"

    def _is_doubtful(self, series: str) -> bool:
        return self._fault(series).exists()


_SETTLED: Final = (TransferState.IMPORTED, TransferState.CHANGED)


def _changed(why: str) -> dict[str, str]:
    return {"state": TransferState.CHANGED.value, "reason": why}


def _sealed(original: Dataset, done: Deidentified) -> SealedImage:
    """
    Raises:
        CorruptFile: the header holds what cannot be written.
    """
    header = Dataset({tag: original._dict[tag] for tag in original._dict if not tag.is_private})
    for keyword in PIXEL_BOUND:
        if keyword in header:
            del header[keyword]
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return SealedImage(
        image=str(done.dataset.SOPInstanceUID),
        series=str(done.dataset.SeriesInstanceUID),
        pixels_sha256=_pixels_sha256(original),
        header=header,
        names=done.names,
    )


def _pixels_sha256(image: Dataset) -> str:
    """Of the decoded pixels, as a PACS may compress them otherwise the next time; of the bytes
    where they cannot be decoded."""
    stored = bytes(image.get("PixelData") or b"")
    if image.file_meta.TransferSyntaxUID.is_compressed:
        try:
            stored = image.pixel_array.tobytes()
        except Exception:  # pydicom raises what it likes; the import says what is wrong
            return hashlib.sha256(stored).hexdigest()
    return hashlib.sha256(stored).hexdigest()


def _reason(summary: ImportSummary, cases: Collection[str]) -> str:
    if len(cases) > 1:
        return f"several volumes in one series; the others: {', '.join(sorted(cases)[1:])}"
    notes = (*summary.refused, *summary.skipped) if not cases else summary.warnings
    return "; ".join(note.reason for note in notes)[:1000]


def _by_tag(tags: Collection[BaseTag]) -> str:
    return " ".join(f"{tag.group:04X},{tag.element:04X}" for tag in sorted(tags))
