"""Configuration of the review service: environment variables ``ATLAS_REVIEW_<FIELD>``."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Literal, Self

from atlas_core.addresses import Address, is_loopback
from atlas_core.imaging import MAX_VOXELS
from atlas_core.organs import ABDOMEN_ATLAS, OrganScheme
from atlas_core.records import Reading
from pydantic import AfterValidator, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from atlas_review.auth import ACCOUNTS_FILE, Role

ENV_PREFIX = "ATLAS_REVIEW_"


def _without_slash(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"address {url!r}: expected http://… or https://…")
    return url.rstrip("/")


def _addresses(text: str) -> str:
    for part in filter(None, (one.strip() for one in text.split(","))):
        try:
            ipaddress.ip_network(part)
        except ValueError as error:  # a name, or a network that has bits beyond its mask
            raise ValueError(f"{error}: expected as 10.0.0.7,10.30.0.0/16") from None
    return text


Url = Annotated[str, AfterValidator(_without_slash)]
Proxies = Annotated[str, AfterValidator(_addresses)]


class ReviewSettings(BaseSettings):
    """One review service."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

    listen: Address = Field(default="127.0.0.1:18030", description="Where HTTP is served.")
    public_url: Url | None = Field(
        default=None,
        description="How browsers reach the service, as https://review.example.org; default: the "
        "address of the request. Needed behind a proxy, and for OIDC.",
    )
    trusted_proxies: Proxies = Field(
        default="127.0.0.1,::1",
        description="Addresses and networks, comma-separated, whose X-Forwarded-For and -Proto are "
        "believed; default: a proxy on this machine. Of any other, sign-ins are counted by what it "
        "claims, and the log says so.",
    )
    store: Path = Field(default=Path(".atlasloop/store"), description="Root of the case store.")
    catalog_url: SecretStr = Field(
        default=SecretStr("sqlite:///.atlasloop/catalog.sqlite"),
        description="SQLAlchemy address of the catalog.",
    )
    home: Path = Field(
        default=Path(".atlasloop/review"),
        description="Folder of the account file and the secret that this service makes for itself.",
    )
    accounts: Path | None = Field(
        default=None, description="Account file; default: accounts.json in `home`."
    )
    secret: SecretStr | None = Field(
        default=None,
        min_length=32,
        description="Signs what browsers keep for us. The same for all replicas; default: made at "
        "the first start and kept in `home`.",
    )
    workers: int = Field(default=1, ge=1, le=64, description="Processes that serve.")
    organs: OrganScheme = Field(
        default=ABDOMEN_ATLAS, description="Label values of the organs, as JSON."
    )
    reading: Reading = Field(
        default=Reading.PAPER, description="Whose attention maps are shown of a case without task."
    )
    lease_s: float = Field(
        default=600.0, ge=10, description="How long a case is held without a word from its page."
    )
    session_hours: float = Field(default=12.0, gt=0, description="Until people sign in again.")
    capability_minutes: float = Field(
        default=60.0, gt=0, description="How long 3D Slicer may download an image it was given."
    )
    max_upload_bytes: int = Field(
        default=256 << 20, ge=1 << 10, description="Of one request: a compressed mask is small."
    )
    volume_threads: int = Field(
        default=0, ge=0, description="Volumes worked on at once; 0: half the cores."
    )
    max_voxels: int = Field(default=MAX_VOXELS, ge=1, description="Of one volume.")
    region_threshold: float = Field(
        default=0.2, ge=0, le=2, description="Attention from which on a voxel counts as attended."
    )
    sheet_interval_s: float = Field(
        default=30.0,
        ge=0,
        description="How often cases are looked for whose contact sheet can be made before "
        "somebody asks; 0: never.",
    )
    login_attempts: int = Field(
        default=10, ge=1, description="Failed sign-ins per name, and per address, in 15 minutes."
    )
    insecure: bool = Field(
        default=False,
        description="Everybody is manager without signing in. Only on a loopback address.",
    )
    prefect_api_url: Url | None = Field(
        default=None, description="Where events go, as http://127.0.0.1:18020/api; none: nowhere."
    )
    prefect_auth: SecretStr | None = Field(
        default=None,
        description="USER:PASSWORD of the Prefect server (its PREFECT_SERVER_API_AUTH_STRING).",
    )
    event_interval_s: float = Field(
        default=5.0, gt=0, description="How often the queue is looked at, and delivery retried."
    )
    oidc_issuer: Url | None = Field(
        default=None, description="OpenID provider, as https://sso.example.org/realms/hospital."
    )
    oidc_client_id: str = Field(default="atlasloop-review", description="As registered there.")
    oidc_client_secret: SecretStr | None = Field(
        default=None, description="Of a confidential client; none: a public one, PKCE alone."
    )
    oidc_scopes: str = Field(default="openid profile email", description="Asked for.")
    oidc_name_claim: str = Field(
        default="preferred_username", description="Claim that names the user, else `sub`."
    )
    oidc_roles_claim: str = Field(
        default="groups", description="Claim that lists what `oidc_roles` maps to roles."
    )
    oidc_roles: dict[str, Role] = Field(
        default_factory=dict, description='Value of that claim → role, as {"radiology": "reader"}.'
    )
    oidc_default_role: Role | None = Field(
        default=None, description="Of users whom nothing gives a role; none: they may not enter."
    )
    allow_http_oidc: bool = Field(
        default=False, description="Accept a provider without TLS: for tests on one machine."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @model_validator(mode="after")
    def _insecure_on_loopback_only(self) -> Self:
        if self.insecure and not is_loopback(self.listen):
            raise ValueError(
                f"insecure, and {self.listen} is reachable from other machines: anybody could "
                "change labels; listen on 127.0.0.1, or let people sign in"
            )
        return self

    @model_validator(mode="after")
    def _oidc_over_tls(self) -> Self:
        if self.oidc_issuer and self.oidc_issuer.startswith("http://") and not self.allow_http_oidc:
            raise ValueError("oidc_issuer has no TLS: whoever is in between could sign in as any")
        return self

    @property
    def accounts_file(self) -> Path:
        return self.accounts or self.home / ACCOUNTS_FILE

    @property
    def secret_file(self) -> Path:
        return self.home / "secret"
