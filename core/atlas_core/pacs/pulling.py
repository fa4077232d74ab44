"""Pulling: series of a PACS brought here, each imported as soon as it is whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final

from pydicom import Dataset

from atlas_core.errors import (
    AtlasError,
    ConfigurationError,
    Conflict,
    LimitExceeded,
    Unavailable,
    UnsupportedVolume,
)
from atlas_core.frozen_model import FrozenModel
from atlas_core.pacs.dicomweb import DicomWebPacs
from atlas_core.pacs.dimse import DimsePacs, Receiver
from atlas_core.pacs.inbox import Inbox
from atlas_core.pacs.remote import FoundSeries, Pacs, SeriesQuery
from atlas_core.pacs.settings import PacsSettings
from atlas_core.pacs.transfers import Transfer, TransferState

ARRIVAL_S: Final = 0.2
"""Between looks whether what the PACS has sent to our receiver is written."""


class PullSummary(FrozenModel):
    """What became of the series that were asked for, by pseudonym.

    Attributes:
        series: one transfer each, as it stands now.
        skipped: of them, those that were settled before.
        seconds: of the whole pull.
    """

    series: tuple[Transfer, ...]
    skipped: int = 0
    seconds: float = 0.0

    def count(self, state: TransferState) -> int:
        """Series in `state`."""
        return sum(one.state is state for one in self.series)

    @property
    def complete(self) -> bool:
        """Whether all of them are cases."""
        return self.count(TransferState.IMPORTED) == len(self.series)


OnSeries = Callable[[int, int, Transfer], None]
"""Called with series done, series found, and where the last one stands."""


def _silent(_done: int, _found: int, _transfer: Transfer) -> None:
    return None


def connect(settings: PacsSettings) -> Pacs:
    """The PACS of the settings.

    Raises:
        ConfigurationError: none is named.
    """
    if settings.dicomweb_url is not None:
        return DicomWebPacs(settings)
    if settings.peer is not None:
        return DimsePacs(settings)
    raise ConfigurationError(
        "no PACS is named",
        remedy="set ATLASLOOP_PACS_DICOMWEB_URL, or ATLASLOOP_PACS_PEER and _PEER_TITLE",
    )


def receiving(settings: PacsSettings, inbox: Inbox) -> AbstractContextManager[object]:
    """What must be up while a PACS sends: our receiver, unless it fetches by DICOMweb, or another
    process of this home receives already."""
    if settings.dicomweb_url is not None:
        return nullcontext()
    try:
        return Receiver(settings, inbox.take)
    except ConfigurationError:
        return nullcontext()  # `atlasloop pacs receive` is up; both write to one inbox


@dataclass(frozen=True)
class Pull:
    """One pull.

    Attributes:
        pacs: where from.
        inbox: where to.
        dataset: that the series become cases of.
        again: take series anew that are settled.
        arrival_s: how long images that the PACS has sent may take to be written.
    """

    pacs: Pacs
    inbox: Inbox
    dataset: str
    again: bool = False
    arrival_s: float = 30.0

    def run(self, query: SeriesQuery, on_series: OnSeries = _silent) -> PullSummary:
        """Bring here what `query` finds, one series after the other.

        What is a case already is passed over, and of a series that came in part only the rest is
        asked for.

        Raises:
            Unavailable: the PACS, the disk or the catalog is away; run it again.
            InvalidInput: the query asks for everything.
        """
        started = time.monotonic()
        found = list(self.pacs.find(query))
        asked = [(one, self._ask(one)) for one in found]
        done, skipped = [], 0
        for number, (one, transfer) in enumerate(asked, 1):
            if transfer.state is TransferState.IMPORTED:
                skipped += 1
            elif not _is_settled(transfer):
                transfer = self._bring(one, transfer)
            done.append(transfer)
            on_series(number, len(asked), transfer)
        seconds = round(time.monotonic() - started, 3)
        return PullSummary(series=tuple(done), skipped=skipped, seconds=seconds)

    def _ask(self, found: FoundSeries) -> Transfer:
        return self.inbox.ask(
            found.series,
            found.study,
            found.patient,
            issuer=found.issuer,
            dataset=self.dataset,
            expected=len(found.images) or None,
            again=self.again,
        )

    def _bring(self, found: FoundSeries, transfer: Transfer) -> Transfer:
        refused: list[AtlasError] = []

        def take(image: Dataset) -> None:
            try:
                self.inbox.take(image)
            except (Conflict, UnsupportedVolume, LimitExceeded) as error:
                refused.append(error)  # the transfer says so; other images are no better or worse

        try:
            self.pacs.fetch(found, self._lacking(found, transfer.series), take)
            if not refused:
                self._await(transfer.series)
        except Unavailable as error:
            self.inbox.transfers.note(transfer.series, reason=error.what)
            raise
        return self.inbox.take_in(transfer.series)

    def _lacking(self, found: FoundSeries, series: str) -> tuple[str, ...]:
        """The images that are not here; none if all are to come."""
        here = self.inbox.staged(series)
        if not here:
            return ()
        uid = self.inbox.vault.pseudonyms.uid
        return tuple(one for one in found.images if uid(one) not in here)

    def _await(self, series: str) -> None:
        """Until the images that the PACS has sent are written, or none comes any more."""
        transfer, here = self.inbox.transfers.of_series(series), -1
        last = time.monotonic()
        while self.inbox.missing(transfer) and time.monotonic() - last < self.arrival_s:
            if _is_settled(transfer):
                return
            if (count := self.inbox.count(series)) != here:
                here, last = count, time.monotonic()
            time.sleep(ARRIVAL_S)
            transfer = self.inbox.transfers.of_series(series)


def _is_settled(transfer: Transfer) -> bool:
    """Whether only a pull anew can change it."""
    return transfer.state in (
        TransferState.IMPORTED,
        TransferState.REFUSED,
        TransferState.CHANGED,
    )


def read_list(text: str) -> Iterator[str]:
    """Identifiers of a list, one a line or the first column of a CSV; empty lines and ``#`` go."""
    for line in text.splitlines():
        first = line.partition("#")[0].partition(",")[0].strip().strip('"')
        if first:
            yield first
