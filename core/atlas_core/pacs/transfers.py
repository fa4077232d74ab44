"""Where each series stands that comes from a hospital: rows of the catalog, by pseudonym."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from pydantic import AwareDatetime, Field

from atlas_core.catalog import Catalog, insert_new
from atlas_core.catalog import tables as t
from atlas_core.errors import NotFound
from atlas_core.frozen_model import FrozenModel
from atlas_core.records import DatasetName

_t = t.transfers.c


class TransferState(StrEnum):
    """What has become of a series. Every image is de-identified before anything of it is kept."""

    ASKED = "asked"
    """The PACS has it; no image is here."""
    RECEIVING = "receiving"
    """Some images are here."""
    RECEIVED = "received"
    """All images are here; the import is to come, or waits for the reason's end."""
    IMPORTED = "imported"
    """It is a case."""
    REFUSED = "refused"
    """It is no case, for the reason."""
    CHANGED = "changed"
    """It is a case, and its sender has had other images of it since."""


class Transfer(FrozenModel):
    """One series, by pseudonyms.

    Attributes:
        series: pseudonym of its SeriesInstanceUID.
        study: of its StudyInstanceUID.
        patient: of its PatientID; equal for all series of one patient.
        dataset: that it becomes a case of.
        state: where it stands.
        reason: why it stands there, in a sentence; may be empty.
        expected: images that the sender says it has; None: it did not say.
        case_id: its case, once it is one.
        pushed: what went back to its study: name of the object, as `objects_of_case` names it → its
            SOPInstanceUID at the PACS.
        asked_at: first heard of.
        changed_at: last change of this row.
    """

    series: str
    study: str
    patient: str
    dataset: DatasetName
    state: TransferState = TransferState.ASKED
    reason: str = ""
    expected: int | None = None
    case_id: str | None = None
    pushed: dict[str, str] = Field(default_factory=dict)
    asked_at: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    changed_at: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))


class Transfers:
    """The transfers in a catalog. Safe to share between threads."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def ask(self, transfer: Transfer) -> Transfer:
        """Put `transfer` on record; the one on record if its series is there already."""
        with self._catalog.transaction(write=True) as connection:
            insert_new(connection, t.transfers, [transfer.model_dump()])
        return self.of_series(transfer.series)

    def of_series(self, series: str) -> Transfer:
        """
        Raises:
            NotFound: nobody has heard of it.
        """
        found = self._where(_t.series == series)
        if not found:
            raise NotFound("no such series on record", got=series)
        return found[0]

    def of_case(self, case_id: str) -> Transfer:
        """
        Raises:
            NotFound: the case did not come from a PACS.
        """
        found = self._where(_t.case_id == case_id)
        if not found:
            raise NotFound(
                "this case did not come from a PACS",
                case=case_id,
                remedy="what was imported from files goes back as files: `atlasloop release`",
            )
        return found[0]

    def all(self, states: Collection[TransferState] = ()) -> list[Transfer]:
        """Transfers in any of `states`, the newest first; no states: all."""
        wanted = _t.state.in_([state.value for state in states]) if states else sa.true()
        return self._where(wanted)

    def note(self, series: str, **changes: Any) -> Transfer:
        """Change fields of a row: `state`, `reason`, `expected`, `case_id`, `pushed`."""
        row = changes | {"changed_at": datetime.now(UTC)}
        with self._catalog.transaction(write=True) as connection:
            connection.execute(sa.update(t.transfers).where(_t.series == series).values(row))
        return self.of_series(series)

    def _where(self, wanted: sa.ColumnElement[bool]) -> list[Transfer]:
        query = sa.select(t.transfers).where(wanted).order_by(_t.asked_at.desc(), _t.series)
        with self._catalog.transaction(write=False) as connection:
            return [Transfer.model_validate(row) for row in connection.execute(query).mappings()]
