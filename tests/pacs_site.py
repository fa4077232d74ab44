"""A site that receives series, opened again as by a new process."""

from __future__ import annotations

from pathlib import Path

from atlas_core.catalog import Catalog
from atlas_core.pacs import Inbox, Vault
from atlas_core.store import CaseStore
from pydicom import Dataset


class Site:
    """See the module.

    Attributes:
        home: folder of everything.
        vault_file: the vault.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.vault_file = home / "vault" / "vault.sqlite"
        self.store = CaseStore(home / "store")
        self.open()

    def open(self) -> None:
        self.catalog = Catalog.open(f"sqlite:///{self.home}/catalog.sqlite")
        self.vault = Vault.open(f"sqlite:///{self.vault_file}")
        self.inbox = Inbox(self.home / "inbox", self.vault, self.catalog, self.store, "hospital")

    def close(self) -> None:
        self.catalog.close()
        self.vault.close()

    def series(self, image: Dataset) -> str:
        return self.vault.pseudonyms.uid(image.SeriesInstanceUID)
