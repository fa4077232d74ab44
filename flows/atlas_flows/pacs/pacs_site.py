"""What commands and flows do with a PACS. Nothing here knows Prefect."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from atlas_core.catalog import Catalog
from atlas_core.dicom_export import ExportedLabels, ObjectKind
from atlas_core.errors import AtlasError, ConfigurationError, InvalidInput, Unavailable
from atlas_core.pacs import (
    Inbox,
    PacsSettings,
    Pull,
    Push,
    SeriesQuery,
    Transfer,
    Transfers,
    TransferState,
    Vault,
    connect,
    read_list,
    receiving,
)
from atlas_core.records import Reading
from atlas_core.store import CaseStore
from atlas_embedded.settings import sqlite_url
from pydantic import ValidationError

from atlas_flows.runs import CaseOutcome, Outcome, RunSummary
from atlas_flows.settings import Places

OnOutcome = Callable[[int, int, CaseOutcome], None]
"""Takes how many are done, of how many, and the last one's outcome."""


class PullRunSummary(RunSummary):
    """The result of one pull; its "cases" are series, by pseudonym. Those that were imported before
    are skipped."""


class PushSummary(RunSummary):
    """The result of one push; cases whose labels are there already are skipped."""


@dataclass(frozen=True)
class PacsSite:
    """The catalog, store, vault and inbox of this site, open.

    Attributes:
        settings: of the connection.
        catalog: of the cases.
        store: their files.
        vault: whose they are.
        inbox: series on their way in.
    """

    settings: PacsSettings
    catalog: Catalog
    store: CaseStore
    vault: Vault
    inbox: Inbox

    @classmethod
    @contextmanager
    def open(cls, places: Places, dataset: str | None = None) -> Iterator[PacsSite]:
        """
        Args:
            dataset: that series become cases of; None: the setting's.

        Raises:
            ConfigurationError: malformed settings, or another vault than that of the catalog.
            Unavailable: a database does not answer.
        """
        settings = read_settings()
        home = places.embedded.home
        places.embedded.make_home()
        with ExitStack() as stack:
            catalog = stack.enter_context(Catalog.open(places.catalog_url))
            vault_url = settings.vault_url or _own_vault(places)
            vault = stack.enter_context(Vault.open(vault_url))
            store = CaseStore(places.store)
            folder = settings.inbox or home / "pacs" / "inbox"
            inbox = Inbox(folder, vault, catalog, store, dataset or settings.dataset)
            yield cls(settings, catalog, store, vault, inbox)


def _own_vault(places: Places) -> str:
    """The vault beside the catalog of this machine.

    Raises:
        ConfigurationError: the catalog is elsewhere: a home here may live as short as a container.
    """
    if places.catalog_url != places.embedded.catalog_url:
        raise ConfigurationError(
            "the vault is not named", remedy="set ATLASLOOP_PACS_VAULT_URL, as the catalog's"
        )
    return sqlite_url(places.embedded.home.absolute() / "pacs" / "vault" / "vault.sqlite")


def read_settings() -> PacsSettings:
    """From the environment.

    Raises:
        ConfigurationError: a value that cannot work, with its name.
    """
    try:
        return PacsSettings()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ConfigurationError(
            f"setting ATLASLOOP_PACS_{str(first['loc'][0]).upper()} cannot work",
            expected=first["msg"],
        ) from None


def query_of(
    *,
    studies: Sequence[str] = (),
    patients: Sequence[str] = (),
    accessions: Sequence[str] = (),
    study_file: Path | None = None,
    patient_file: Path | None = None,
    accession_file: Path | None = None,
    dates: str = "",
    body_part: str = "",
    max_thickness_mm: float | None = None,
) -> SeriesQuery:
    """The query of values and of files that list them, one a line.

    Raises:
        ConfigurationError: a file that cannot be read.
        InvalidInput: malformed dates.
    """
    try:
        return SeriesQuery(
            studies=(*studies, *_listed(study_file)),
            patients=(*patients, *_listed(patient_file)),
            accessions=(*accessions, *_listed(accession_file)),
            dates=dates,
            body_part=body_part,
            max_thickness_mm=max_thickness_mm,
        )
    except ValidationError as error:
        field = error.errors(include_url=False)[0]["loc"][0]
        raise InvalidInput(
            f"malformed {field}", expected="YYYYMMDD or YYYYMMDD-YYYYMMDD", got=dates
        ) from None


def _listed(file: Path | None) -> tuple[str, ...]:
    if file is None:
        return ()
    try:
        return tuple(read_list(file.read_text(encoding="utf-8-sig")))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            "the list cannot be read", expected="UTF-8, one a line", got=type(error).__name__
        ) from None


def pull_series(
    site: PacsSite, query: SeriesQuery, *, again: bool = False, on_outcome: OnOutcome | None = None
) -> PullRunSummary:
    """Bring the series of `query` here; see `Pull.run`."""
    outcomes = []

    def observe(done: int, total: int, transfer: Transfer) -> None:
        outcome = _outcome(transfer)
        outcomes.append(outcome)
        if on_outcome is not None:
            on_outcome(done, total, outcome)

    with receiving(site.settings, site.inbox):
        # By DICOMweb everything is here when the answer has ended; a PACS that sends is waited for.
        arrival_s = 0.0 if site.settings.dicomweb_url else site.settings.timeout_s
        pull = Pull(connect(site.settings), site.inbox, site.inbox.dataset, again, arrival_s)
        summary = pull.run(query, observe)
    return PullRunSummary(
        skipped=summary.skipped, outcomes=tuple(outcomes), seconds=summary.seconds
    )


def _outcome(transfer: Transfer) -> CaseOutcome:
    good = transfer.state is TransferState.IMPORTED
    return CaseOutcome(
        case_id=transfer.series,
        outcome=Outcome.IMPORTED if good else Outcome.FAILED,
        message="" if good else f"{transfer.state}: {transfer.reason}",
    )


def push_cases(
    site: PacsSite,
    case_ids: Sequence[str],
    *,
    kinds: Collection[ObjectKind] = (ObjectKind.SEG,),
    label: ExportedLabels = ExportedLabels.PREFERRED,
    reading: Reading = Reading.PAPER,
    again: bool = False,
    on_outcome: OnOutcome | None = None,
) -> PushSummary:
    """Send objects of cases back to their studies, one case after the other; see `Push`.

    Args:
        case_ids: none: every case that came from a PACS.

    Raises:
        ConfigurationError: no PACS is named, or it does not let us in.
    """
    started = time.monotonic()
    push = Push(connect(site.settings), site.vault, site.catalog, site.store, kinds, label, reading)
    chosen = list(case_ids) or _cases_of_the_pacs(site)
    outcomes: list[CaseOutcome] = []
    skipped = 0
    away = ""
    for number, case_id in enumerate(chosen, 1):
        outcome = _pushed(push, case_id, again, away)
        if outcome is None:
            skipped += 1
            continue
        if outcome.outcome is Outcome.NOT_TRIED:
            away = outcome.message
        outcomes.append(outcome)
        if on_outcome is not None:
            on_outcome(number, len(chosen), outcome)
    seconds = round(time.monotonic() - started, 3)
    return PushSummary(skipped=skipped, outcomes=tuple(outcomes), seconds=seconds)


def _cases_of_the_pacs(site: PacsSite) -> list[str]:
    return [one.case_id for one in Transfers(site.catalog).all() if one.case_id is not None]


def _pushed(push: Push, case_id: str, again: bool, away: str) -> CaseOutcome | None:
    """None: it was there."""
    started = time.monotonic()
    try:
        if away:
            raise Unavailable(away)
        if not push.run(case_id, again=again):
            return None
        outcome, message = Outcome.PUSHED, ""
    except ConfigurationError:
        raise
    except Unavailable as error:  # every other case would meet the same
        outcome, message = Outcome.NOT_TRIED, error.what
    except AtlasError as error:
        outcome, message = Outcome.FAILED, str(error)
    seconds = round(time.monotonic() - started, 3)
    return CaseOutcome(case_id=case_id, outcome=outcome, seconds=seconds, message=message)
