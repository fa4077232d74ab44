"""Settings of the connection to a PACS."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from atlas_core.addresses import Address
from atlas_core.records import DatasetName
from atlas_core.tls import TlsFiles

AE_TITLE = r"^[A-Za-z0-9_.-]{1,16}$"


class PacsSettings(BaseSettings):
    """How a PACS is reached, and how it reaches us."""

    model_config = SettingsConfigDict(
        env_prefix="ATLASLOOP_PACS_", frozen=True, extra="ignore", env_ignore_empty=True
    )

    dicomweb_url: str | None = Field(
        default=None,
        pattern="^https?://",
        description="Root of the PACS's DICOMweb service, as https://pacs.example.org/dicom-web; "
        "where there is one, it is used for everything.",
    )
    dicomweb_user: str | None = Field(default=None, description="Name for HTTP basic access.")
    dicomweb_password: SecretStr | None = Field(default=None, description="Its password.")
    dicomweb_token: SecretStr | None = Field(
        default=None, description="Bearer token, instead of name and password."
    )
    dicomweb_authority: Path | None = Field(
        default=None,
        description="Certificate of the authority that signed the PACS's, as PEM; empty: those "
        "that the system trusts.",
    )
    peer: Address | None = Field(
        default=None, description="HOST:PORT of the PACS for C-FIND, C-MOVE and C-STORE."
    )
    peer_title: str = Field(default="ANY-SCP", pattern=AE_TITLE, description="Its AE title.")
    title: str = Field(default="ATLASLOOP", pattern=AE_TITLE, description="Our AE title.")
    listen: Address = Field(
        default="127.0.0.1:11112",
        description="HOST:PORT where images are received; others than this machine need their "
        "titles in `callers`.",
    )
    callers: tuple[str, ...] = Field(
        default=(),
        description="AE titles that may send to us; empty: the PACS's alone (`peer_title`).",
    )
    tls: TlsFiles | None = Field(
        default=None,
        description="DICOM over TLS both ways, as JSON with `authority`, `certificate` and `key`, "
        "paths of PEM files: whoever speaks to us proves who it is by a certificate.",
    )
    timeout_s: float = Field(
        default=30, gt=0, description="For an answer of the PACS; then it counts as away."
    )
    images_per_s: float | None = Field(
        default=None, gt=0, description="Fetched at most; empty: as fast as the PACS gives them."
    )
    quiet_s: float = Field(
        default=60,
        gt=0,
        description="A series that is sent to us, and whose number of images is not known, is "
        "whole when nothing of it came for so long.",
    )
    max_image_mb: int = Field(
        default=512, ge=1, description="Megabytes of one image; a larger one ends its association."
    )
    max_associations: int = Field(default=8, ge=1, le=256, description="Senders at once.")
    dataset: DatasetName = Field(
        default="pacs", description="Dataset of what is sent to us without having been asked for."
    )
    inbox: Path | None = Field(
        default=None,
        description="Folder of series that are not whole yet, de-identified; empty: "
        "<home>/pacs/inbox.",
    )
    vault_url: str | None = Field(
        default=None,
        description="SQLAlchemy address of the vault (key of the pseudonyms, and whose they are); "
        "give it a role of its own. Empty: <home>/pacs/vault/vault.sqlite.",
    )

    @property
    def allowed_callers(self) -> tuple[str, ...]:
        """AE titles that may send to us."""
        return self.callers or (self.peer_title,)
