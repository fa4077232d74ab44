"""Configuration of the review service: environment variables ``ATLAS_REVIEW_<FIELD>``."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from atlas_core.addresses import Address, HostNames, is_loopback
from atlas_core.imaging import MAX_VOXELS
from atlas_core.organs import ABDOMEN_ATLAS, SchemeSetting
from atlas_core.records import Reading
from atlas_core.review import MAX_PROPOSALS
from pydantic import AfterValidator, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

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
        except ValueError as error:  # a host name, or a network with host bits set
            raise ValueError(f"{error}: expected as 10.0.0.7,10.30.0.0/16") from None
    return text


def _origins(text: str) -> str:
    for origin in filter(None, (one.strip() for one in text.split(","))):
        if not re.fullmatch(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?", origin):
            raise ValueError(f"origin {origin!r}: expected as https://viewer.example.org")
    return text


Origins = Annotated[str, AfterValidator(_origins)]
Url = Annotated[str, AfterValidator(_without_slash)]
Proxies = Annotated[str, AfterValidator(_addresses)]


class ReviewSettings(BaseSettings):
    """One review service."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

    listen: Address = Field(default="127.0.0.1:18030", description="Where HTTP is served.")
    metrics_listen: Address | Literal[""] = Field(
        default="",
        description="Where Prometheus metrics are served, as 127.0.0.1:18031; default: nowhere. Of "
        "one process: with several `workers` they are not served.",
    )
    metrics_hosts: HostNames = Field(
        default="",
        description="Host names by which metrics may be asked for, comma-separated, beside every "
        "IP address and localhost.",
    )
    public_url: Url | None = Field(
        default=None,
        description="Address by which browsers reach the service, as https://review.example.org; "
        "default: that of the request. Needed behind a proxy, and for OIDC.",
    )
    trusted_proxies: Proxies = Field(
        default="127.0.0.1,::1",
        description="Addresses and networks of proxies, comma-separated, whose X-Forwarded-For and "
        "-Proto are trusted; default: a proxy on this machine. Behind any other proxy, failed "
        "sign-ins are counted by the address that it claims, and the log says so.",
    )
    cors_origins: Origins = Field(
        default="",
        description="Origins of other pages, comma-separated, that may call the API with a bearer "
        "token, as OHIF with its MONAI Label plug-in; cookies are never accepted from them. "
        "Default: none.",
    )
    store: Path = Field(default=Path(".atlasloop/store"), description="Root of the case store.")
    catalog_url: SecretStr = Field(
        default=SecretStr("sqlite:///.atlasloop/catalog.sqlite"),
        description="SQLAlchemy address of the catalog.",
    )
    home: Path = Field(
        default=Path(".atlasloop/review"),
        description="Folder of the account file and of the secret that the service generates.",
    )
    accounts: Path | None = Field(
        default=None, description="Account file; default: accounts.json in `home`."
    )
    secret: SecretStr | None = Field(
        default=None,
        min_length=32,
        description="Signs cookies and image ids. It must be the same for all replicas; default: "
        "generated at the first start and kept in `home`.",
    )
    workers: int = Field(default=1, ge=1, le=64, description="Number of processes that serve.")
    organs: Annotated[SchemeSetting, NoDecode] = Field(
        default=ABDOMEN_ATLAS,
        description="The organs of the atlas, which must be those that the catalog remembers: a "
        "shipped scheme (abdomen_atlas_1_0, abdomen_atlas_1_1, totalsegmentator_v2), the path of a "
        "YAML file, or JSON.",
    )
    reading: Reading = Field(
        default=Reading.PAPER,
        description="Reading whose attention maps are shown, where a case has them.",
    )
    lease_s: float = Field(
        default=600.0,
        ge=10,
        description="How long a case stays leased after the last renewal by its page.",
    )
    client_lease_hours: float = Field(
        default=8.0,
        gt=0,
        le=7 * 24,
        description="How long a case stays leased to a MONAI Label client, as 3D Slicer, after its "
        "last request about it. Such a client has no page that renews the lease while people draw.",
    )
    confirm_unvisited: bool = Field(
        default=False,
        description="Confirming a case also confirms organs that nobody looked at: the page does "
        "not ask, and a program need not say which were.",
    )
    skipped_draft_hours: float = Field(
        default=24.0,
        ge=0,
        description="How long the unfinished drawing of a case that was skipped is kept.",
    )
    session_hours: float = Field(
        default=12.0, gt=0, description="Hours until people have to sign in again."
    )
    capability_minutes: float = Field(
        default=60.0,
        gt=0,
        description="Minutes for which 3D Slicer may download an image by its id.",
    )
    max_upload_bytes: int = Field(
        default=256 << 20,
        ge=1 << 10,
        description="Bytes of one request at most; a compressed mask is small.",
    )
    max_proposals: int = Field(
        default=MAX_PROPOSALS,
        ge=1,
        description="Proposals of one annotator that nobody has accepted, at most.",
    )
    client_timeout_s: int = Field(
        default=10,
        ge=1,
        description="Seconds that a client may take for the head of a request, or keep a "
        "connection open between two; three times as long it may send less than 1 KiB/s of a body.",
    )
    volume_threads: int = Field(
        default=0, ge=0, description="Volumes processed at once; 0: half the cores."
    )
    max_voxels: int = Field(default=MAX_VOXELS, ge=1, description="Voxels of one volume at most.")
    region_threshold: float = Field(
        default=0.2,
        ge=0,
        le=2,
        description="Attention (Eq. 4) from which a voxel counts as attended.",
    )
    region_min_ml: float = Field(
        default=0.1,
        ge=0,
        description="Millilitres of the smallest attended region that is listed; a sphere of 6 mm "
        "has 0.1. Smaller ones are noise along borders.",
    )
    sheet_interval_s: float = Field(
        default=30.0,
        ge=0,
        description="Seconds between searches for cases whose contact sheet can be rendered in "
        "advance; 0: never.",
    )
    login_attempts: int = Field(
        default=10,
        ge=1,
        description="Failed sign-ins allowed per address (IPv6: per /64 network) in 15 minutes.",
    )
    insecure: bool = Field(
        default=False,
        description="Everybody is a manager without signing in. Only on a loopback address.",
    )
    oidc_issuer: Url | None = Field(
        default=None, description="OpenID provider, as https://sso.example.org/realms/hospital."
    )
    oidc_client_id: str = Field(
        default="atlasloop-review", description="Client id, as registered there."
    )
    oidc_client_secret: SecretStr | None = Field(
        default=None,
        description="Secret of a confidential client; default: a public one, with PKCE only.",
    )
    oidc_scopes: str = Field(
        default="openid profile email", description="Scopes that are requested."
    )
    oidc_name_claim: str = Field(
        default="preferred_username",
        description="Claim with the user name; `sub` where it is missing or malformed.",
    )
    oidc_roles_claim: str = Field(
        default="groups", description="Claim that lists what `oidc_roles` maps to roles."
    )
    oidc_roles: dict[str, Role] = Field(
        default_factory=dict,
        description='Value of `oidc_roles_claim` → role, as {"radiology": "reader"}.',
    )
    oidc_default_role: Role | None = Field(
        default=None,
        description="Role of users whose claims map to none; default: they are refused.",
    )
    allow_http_oidc: bool = Field(
        default=False, description="Accept a provider without TLS, for tests on one machine."
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
            raise ValueError("oidc_issuer has no TLS: anybody in between could sign in as any user")
        return self

    @property
    def accounts_file(self) -> Path:
        return self.accounts or self.home / ACCOUNTS_FILE

    @property
    def secret_file(self) -> Path:
        return self.home / "secret"
