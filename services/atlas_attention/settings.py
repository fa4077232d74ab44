"""Configuration of the attention service: environment variables ``ATLAS_ATTENTION_<FIELD>``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from atlas_core.addresses import Address, Addresses, HostNames, is_loopback
from atlas_core.imaging import MAX_VOXELS
from atlas_core.organs import ABDOMEN_ATLAS, SchemeSetting
from atlas_core.tls import TlsFiles
from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from atlas_attention.fusion import DEFAULT_OVERLAP, MAX_MODELS, MAX_ORGANS, MAX_OVERLAP, DeviceName

ENV_PREFIX = "ATLAS_ATTENTION_"


class AttentionSettings(BaseSettings):
    """One attention service."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

    listen: Address = Field(default="127.0.0.1:18010", description="Where gRPC is served.")
    metrics_listen: Address | Literal[""] = Field(
        default="127.0.0.1:18011", description="Where Prometheus metrics are served, or empty."
    )
    metrics_hosts: HostNames = Field(
        default="",
        description="Host names by which metrics may be asked for, comma-separated, beside every "
        "IP address and localhost. Others are refused: a web page could have come by them.",
    )
    allow_remote: bool = Field(
        default=False,
        description="Listen on addresses other than loopback. There is neither TLS nor login here: "
        "only behind a proxy or a network policy that provides them.",
    )
    triton: Addresses = Field(
        default="127.0.0.1:18001",
        description="gRPC endpoint of the model server; of several of them, comma-separated, or a "
        "name that resolves to all (a headless service). Each window goes to the one with the "
        "fewest.",
    )
    triton_tls: TlsFiles | None = Field(
        default=None,
        description="This end of mutual TLS with the model server, as JSON: PEM files authority, "
        "certificate and key; empty: neither encrypted nor proved.",
    )
    store: Path = Field(default=Path(".atlasloop/store"), description="Root of the case store.")
    spool_folder: Path | None = Field(
        default=None,
        description="For unnamed files that hold CTs while they are processed, up to 4 bytes per "
        "voxel and call; default: the system's temporary folder.",
    )
    device: DeviceName = Field(
        default="cpu",
        description="Where predictions are blended and fused; cuda: on the first GPU, with the "
        "extra `gpu` installed. The results are the same.",
    )
    shared_memory: Literal["auto", "cuda", "system", "none"] = Field(
        default="auto",
        description="How windows reach the model server; auto: by shared memory (the GPU's for "
        "device cuda, else the system's) where it can map this machine's, else inside the "
        "messages.",
    )
    locating: bool = Field(
        default=False,
        description="Look first, with the model of the coarsest grid, where organs can be, and lay "
        "windows only there, with a margin of 30 mm. What is left out stands in the result.",
    )
    member_labels: bool = Field(
        default=True,
        description="Store what each model says by itself as a label map beside the pseudo label, "
        "for annotators to take: a fifth of a second and some hundred kilobytes a model and CT.",
    )
    windows_in_flight: int = Field(
        default=0,
        ge=0,
        le=256,
        description="Windows with a server's models at once, of all calls together; 0: one more "
        "than there are cores, at most five. Each takes shared memory: 4 bytes per voxel, and 1 "
        "per voxel, organ and model.",
    )
    inference_timeout_s: float = Field(
        default=60.0,
        gt=0,
        description="For one window at one model, including its time in the queue.",
    )
    overlap: float = Field(
        default=DEFAULT_OVERLAP,
        ge=0,
        le=MAX_OVERLAP,
        description="Share that neighbouring windows have in common, per axis; 1/32 less if that "
        "saves a layer of windows.",
    )
    kernel_threads: int = Field(
        default=0,
        ge=0,
        description="Most threads of the numeric kernels; 0: one per available core. Kernels run "
        "on one thread while models have windows to predict.",
    )
    organs: Annotated[SchemeSetting, NoDecode] = Field(
        default=ABDOMEN_ATLAS,
        description="The organs of the atlas, which must be those that the catalog remembers: a "
        "shipped scheme (abdomen_atlas_1_0, abdomen_atlas_1_1, totalsegmentator_v2), the path of a "
        "YAML file, or JSON.",
    )
    max_voxels: int = Field(default=MAX_VOXELS, ge=1, description="Of one volume.")
    max_message_bytes: int = Field(
        default=64 << 20, ge=1 << 20, le=1 << 30, description="Of one gRPC message."
    )
    max_fuse_models: int = Field(
        default=MAX_MODELS, ge=1, le=MAX_MODELS, description="Models in one fusion call."
    )
    max_fuse_organs: int = Field(
        default=MAX_ORGANS, ge=1, le=MAX_ORGANS, description="Organs in one fusion call."
    )
    max_calls: int = Field(default=4, ge=1, le=1024, description="Calls that run at once.")
    max_waiting: int = Field(
        default=32, ge=0, le=1024, description="Calls that wait to run; more are refused."
    )
    max_uploads: int = Field(
        default=8,
        ge=1,
        le=1024,
        description="Calls that receive a client's data at once; each holds two messages in memory "
        "and up to 4 bytes per voxel in the spool folder.",
    )
    idle_timeout_s: float = Field(
        default=60.0, ge=1, description="A client that is silent for longer is cut off."
    )
    min_client_rate: float = Field(
        default=131_072.0,
        gt=0,
        description="Bytes per second that a client must send and read in the long run; a pause as "
        "long as the idle timeout is allowed.",
    )
    upload_timeout_s: float = Field(
        default=900.0, ge=1, description="For the whole of a client's upload."
    )
    health_interval_s: float = Field(
        default=30.0, gt=0, description="An idle model is probed with a real window this often."
    )
    max_connection_age_s: float = Field(
        default=300.0,
        ge=1.0,
        le=86_400.0,
        description="Seconds after which a connection takes no new calls, so that clients look up "
        "the replicas again; calls under way go on as long as they take.",
    )
    stop_grace_s: float = Field(
        default=5.0, ge=0, description="After SIGTERM: until calls under way are ended."
    )
    traces: str = Field(
        default="",
        pattern=r"^(https?://\S+)?$",
        description="OpenTelemetry collector that receives traces by OTLP over HTTP, for instance "
        "http://collector:4318/v1/traces; empty: no traces.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @model_validator(mode="after")
    def _cuda_memory_needs_a_gpu(self) -> Self:
        if self.shared_memory == "cuda" and self.device != "cuda":
            raise ValueError(f"shared_memory cuda needs {ENV_PREFIX}DEVICE=cuda")
        return self

    @model_validator(mode="after")
    def _loopback_unless_allowed(self) -> Self:
        for name in ("listen", "metrics_listen"):
            address = getattr(self, name)
            if address and not self.allow_remote and not is_loopback(address):
                raise ValueError(
                    f"{name} {address} is reachable from other machines, and there is neither TLS "
                    f"nor login; set {ENV_PREFIX}ALLOW_REMOTE=true if that is meant"
                )
        return self
