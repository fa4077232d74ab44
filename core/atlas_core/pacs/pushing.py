"""Pushing: what the atlas knows of a case back to the study that it came from, as DICOM objects.

The vault gives the original headers, so that the objects bear the study's own UIDs and patient.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from atlas_core.catalog import Catalog
from atlas_core.dicom_export import ExportedLabels, ObjectKind, objects_of_case
from atlas_core.errors import NotFound
from atlas_core.pacs.remote import Pacs
from atlas_core.pacs.transfers import Transfers
from atlas_core.pacs.vault import Vault
from atlas_core.records import Reading
from atlas_core.store import CaseStore


@dataclass(frozen=True)
class Push:
    """One push.

    Attributes:
        pacs: where to.
        vault: whose the cases are.
        catalog: of the cases and labels.
        store: their files.
        kinds: which objects are sent; a report brings the segmentation that it refers to.
        label: which labels.
        reading: of the score whose attention is sent.
    """

    pacs: Pacs
    vault: Vault
    catalog: Catalog
    store: CaseStore
    kinds: Collection[ObjectKind] = (ObjectKind.SEG,)
    label: ExportedLabels = ExportedLabels.PREFERRED
    reading: Reading = Reading.PAPER

    def run(self, case_id: str, *, again: bool = False) -> bool:
        """Send the objects of one case. The same content is the same object, however often it is
        sent; what is on record as sent is left out.

        Args:
            again: send also what is on record as sent.

        Returns:
            False if all of it has been sent before.

        Raises:
            NotFound: no such case, no label or score, or it did not come from a PACS.
            InvalidInput: the PACS refuses an object, or there is no attention to send.
            Unavailable: the PACS is away.
        """
        transfers = Transfers(self.catalog)
        transfer = transfers.of_case(self.catalog.case(case_id).id)
        headers = self.vault.headers(transfer.series)
        if not headers:
            raise NotFound("the vault has no image of this series", case=case_id)
        made = objects_of_case(
            self.catalog,
            self.store,
            case_id,
            headers,
            kinds=self.kinds,
            label=self.label,
            reading=self.reading,
        )
        wanted = {
            name: one
            for name, one in made.items()
            if again or transfer.pushed.get(name) != str(one.SOPInstanceUID)
        }
        if not wanted:
            return False
        self.pacs.store(list(wanted.values()))
        sent = {name: str(one.SOPInstanceUID) for name, one in wanted.items()}
        transfers.note(transfer.series, pushed=transfer.pushed | sent)
        return True
