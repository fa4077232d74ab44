"""Pushing: labels of a case back to the study that it came from, as DICOM SEG.

The vault gives the original headers, so that the object bears the study's own UIDs and patient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from atlas_core.assembly import paint_order, preferred
from atlas_core.catalog import Catalog
from atlas_core.dicom import segmentation
from atlas_core.errors import NotFound
from atlas_core.imaging import read_header, read_label
from atlas_core.organs import BACKGROUND
from atlas_core.pacs.remote import Pacs
from atlas_core.pacs.transfers import Transfers
from atlas_core.pacs.vault import Vault
from atlas_core.records import Label
from atlas_core.store import CaseStore

SEG = "SEG"


@dataclass(frozen=True)
class Push:
    """One push.

    Attributes:
        pacs: where to.
        vault: whose the cases are.
        catalog: of the cases and labels.
        store: their files.
    """

    pacs: Pacs
    vault: Vault
    catalog: Catalog
    store: CaseStore

    def run(self, case_id: str, *, again: bool = False) -> bool:
        """Send the labels of one case: of each organ the original one, else the revised, else the
        pseudo label. The same labels are the same object, however often they are sent.

        Args:
            again: send also what is on record as sent.

        Returns:
            False if exactly these labels have been sent before.

        Raises:
            NotFound: no such case, no label, or it did not come from a PACS.
            InvalidInput: the PACS refuses the object.
            Unavailable: the PACS is away.
        """
        transfers = Transfers(self.catalog)
        transfer = transfers.of_case(self.catalog.case(case_id).id)
        made = self.segmentation_of(case_id, transfer.series)
        uid = str(made.SOPInstanceUID)
        if transfer.pushed.get(SEG) == uid and not again:
            return False
        self.pacs.store([made])
        transfers.note(transfer.series, pushed=transfer.pushed | {SEG: uid})
        return True

    def segmentation_of(self, case_id: str, series: str) -> Dataset:
        """The object that `run` sends.

        Args:
            series: pseudonym of the series that the case came as.

        Raises:
            NotFound: as `run`.
        """
        labels = preferred_labels(self.catalog.labels(case_id))
        if not labels:
            raise NotFound(
                "no label to send", case=case_id, remedy="score it first: `atlasloop score`"
            )
        headers = self.vault.headers(series)
        if not headers:
            raise NotFound("the vault has no image of this series", case=case_id)
        ordered = paint_order(labels, self.catalog.organ_scheme())
        return segmentation(
            headers,
            self._label_map(ordered),
            self.catalog.organ_scheme(),
            geometry=read_header(self.store.ct_path(case_id)).geometry,
            origin={label.organ: label.source for label in ordered},
            created_at=max(label.created_at for label in ordered),
        )

    def _label_map(self, labels: Sequence[Label]) -> NDArray[np.uint8]:
        """Ids of the scheme; a voxel that several masks claim goes to the first."""
        scheme = self.catalog.organ_scheme()
        painted: NDArray[np.uint8] | None = None
        path, voxels = "", np.zeros(0)
        for label in labels:
            if label.path != path:  # the pseudo labels of a case share one file
                path, voxels = label.path, read_label(self.store.path(label.path)).voxels
            if painted is None:
                painted = np.zeros(voxels.shape, np.uint8)
            painted[(voxels == label.value) & (painted == BACKGROUND)] = scheme[label.organ].label
        assert painted is not None
        return painted


def preferred_labels(labels: Sequence[Label]) -> list[Label]:
    """Of each organ the label that counts."""
    by_organ: dict[str, list[Label]] = {}
    for label in labels:
        by_organ.setdefault(label.organ, []).append(label)
    return [preferred(found) for found in by_organ.values()]
