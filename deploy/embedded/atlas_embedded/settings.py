"""Configuration of the embedded stack: arguments, then environment, then ``config.toml``."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from atlas_core.tls import TlsFiles
from pydantic import AfterValidator, Field
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

HOST = "127.0.0.1"
"""Everything listens here only; `access` says who is let in."""

ENV_PREFIX = "ATLASLOOP_"
CONFIG_FILE = "config.toml"

TLS_AUTHORITY, TLS_SERVER, TLS_CLIENT = "authority", "server", "client"
"""Names of files in the folder of keys and certificates."""

ComponentName = Literal["triton", "attention", "review", "prefect", "flows"]
Port = Annotated[int, Field(ge=1, le=65535)]


def _printable(path: Path) -> Path:
    """Blanks, umlauts, ``%``, ``#`` and ``?`` are all used as they are; what no terminal shows, and
    bytes that are not UTF-8, not every part could pass on."""
    if not str(path).isprintable():
        raise ValueError(f"{str(path)!a} holds characters that cannot be shown")
    return path


Folder = Annotated[Path, AfterValidator(_printable)]

PORT_OFFSETS = {
    "triton_grpc_port": 1,
    "attention_port": 10,
    "attention_metrics_port": 11,
    "prefect_port": 20,
    "review_port": 30,
    "review_metrics_port": 31,
}
"""Above `port_base`, unless a port is given by itself."""


def _port(field: str) -> Any:
    return Field(default_factory=lambda values: values["port_base"] + PORT_OFFSETS[field])


def sqlite_url(path: Path, driver: str = "sqlite") -> str:
    """SQLAlchemy address of the SQLite file at the absolute `path`, whatever its name holds."""
    return f"{driver}:///{quote(str(path), safe='/ +')}"


_CHECKOUT = Path(__file__).resolve().parents[3]


class EmbeddedSettings(BaseSettings):
    """One stack. Every field can be set as ``ATLASLOOP_<FIELD>`` or in ``<home>/config.toml``."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

    home: Folder = Field(default=Path(".atlasloop"), description="Everything that the stack keeps.")
    store: Folder = Field(
        default_factory=lambda values: values["home"] / "store",
        description="Root of the case store; CTs need a large disk.",
    )
    catalog_url: str = Field(
        default_factory=lambda values: sqlite_url(
            values["home"].expanduser().absolute() / "catalog.sqlite"
        ),
        description="SQLAlchemy address of the catalog.",
    )
    components: tuple[ComponentName, ...] = Field(
        default=("triton", "attention", "review", "prefect", "flows"),
        min_length=1,
        description="Which parts run here.",
    )
    port_base: int = Field(
        default=18000,
        ge=1024,
        le=65535 - max(PORT_OFFSETS.values()),
        description="Moves all ports, which lie a little above it.",
    )
    triton_grpc_port: Port = _port("triton_grpc_port")
    attention_port: Port = _port("attention_port")
    attention_metrics_port: Port = _port("attention_metrics_port")
    prefect_port: Port = _port("prefect_port")
    review_port: Port = _port("review_port")
    review_metrics_port: Port = _port("review_metrics_port")
    triton_environment: Path = Field(
        default=_CHECKOUT / ".venv-triton",
        description="Virtual environment that holds tritonserver and the models' runtimes.",
    )
    models_dir: Path = Field(
        default=_CHECKOUT / "models" / "demo",
        description="Exported models; `up` installs those whose name is new.",
    )
    model_runtime: Literal["auto", "openvino", "onnxruntime"] = Field(
        default="auto", description="auto: OpenVINO, and ONNX Runtime where that fails."
    )
    model_precision: Literal["f32", "bf16"] = Field(
        default="f32", description="bf16 is used where the CPU has it."
    )
    model_threads: int = Field(
        default=0, ge=0, description="Of one window of a model; 0: its share of the cores."
    )
    model_streams: int = Field(
        default=0,
        ge=0,
        le=64,
        description="Windows that a model works on at once; 0: as many as cores, at most 4. The "
        "slowest model of an ensemble so uses what the others leave.",
    )
    start_timeout_s: float = Field(
        default=300.0,
        gt=0,
        description="For one part. On a slow machine Prefect's first start takes minutes: it makes "
        "its database. A part that ends while it starts is noticed at once.",
    )
    stop_timeout_s: float = Field(
        default=20.0, gt=0, description="Between asking a part to end and killing it."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        home = _home(init_settings()) / CONFIG_FILE
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=home)

    def model_post_init(self, context: Any) -> None:
        # Parts are started with other working directories in mind: no path may depend on ours.
        for name in ("home", "store", "triton_environment", "models_dir"):
            object.__setattr__(self, name, getattr(self, name).expanduser().absolute())

    def make_home(self) -> None:
        """The home folder, its owner's alone, whoever made it: it holds CTs, labels and keys."""
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = self.home.stat().st_mode
        shared = mode & stat.S_ISVTX or self.home.parent == self.home  # /tmp, and the root
        if mode & 0o077 and not shared:
            self.home.chmod(0o700)

    @property
    def repository(self) -> Path:
        """Triton's model repository."""
        return self.home / "triton-repository"

    def seen_by_triton(self, folder: Path) -> Path:
        """A folder of the home as Triton and its models' processes, who work in the home, name it.

        To start such a process, Triton puts paths into a command line for a shell; and in there no
        letter beyond ASCII can be part of one.
        """
        return Path("/proc/self/cwd") / folder.relative_to(self.home)

    @property
    def compiled_models(self) -> Path:
        """Graphs as OpenVINO compiled them for this CPU."""
        return self.home / "compiled-models"

    def log(self, name: ComponentName) -> Path:
        """What a part has written since its last start."""
        return self.run / f"{name}.log"

    @property
    def access_folder(self) -> Path:
        """Keys, certificates and password of the stack; owner-only."""
        return self.home / "access"

    @property
    def triton_server_tls(self) -> TlsFiles:
        """Triton's own end."""
        return self._tls_files(TLS_SERVER)

    @property
    def triton_client_tls(self) -> TlsFiles:
        """The end of whoever may use, and control, this stack's Triton."""
        return self._tls_files(TLS_CLIENT)

    def _tls_files(self, end: str) -> TlsFiles:
        folder = self.access_folder
        return TlsFiles(
            authority=folder / f"{TLS_AUTHORITY}.crt",
            certificate=folder / f"{end}.crt",
            key=folder / f"{end}.key",
        )

    @property
    def prefect_auth_file(self) -> Path:
        """``user:password`` of the Prefect server, which its UI asks for; owner-only."""
        return self.access_folder / "prefect-auth"

    @property
    def review_password_file(self) -> Path:
        """First password of the review service's manager; owner-only."""
        return self.access_folder / "review-admin"

    @property
    def prefect_home(self) -> Path:
        return self.home / "prefect"

    @property
    def run(self) -> Path:
        """Process records, logs, and the lock."""
        return self.home / "run"

    @property
    def triton_grpc(self) -> str:
        return f"{HOST}:{self.triton_grpc_port}"

    @property
    def attention_address(self) -> str:
        return f"{HOST}:{self.attention_port}"

    @property
    def review_url(self) -> str:
        """Of the review service and its page."""
        return f"http://{HOST}:{self.review_port}"

    @property
    def review_home(self) -> Path:
        """The review service's accounts and secret."""
        return self.home / "review"

    @property
    def prefect_url(self) -> str:
        """Of the Prefect UI."""
        return f"http://{HOST}:{self.prefect_port}"

    @property
    def prefect_api_url(self) -> str:
        return f"{self.prefect_url}/api"

    @property
    def stack_id(self) -> str:
        """Eight hex digits that mark the processes and shared memory of the stack at `home`.

        Made of the path and the user, not kept in a file: the processes of a stack are found even
        after somebody removed its folder.
        """
        text = f"{os.getuid()}:{self.home.resolve()}"
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def environment(self) -> dict[str, str]:
        """Variables by which another process comes to the same settings."""
        return {
            f"{ENV_PREFIX}{name.upper()}": _as_variable(getattr(self, name))
            for name in type(self).model_fields
        }


def _home(given: dict[str, Any]) -> Path:
    """The folder whose ``config.toml`` counts; the file itself cannot move it."""
    default = EmbeddedSettings.model_fields["home"].default
    return Path(given.get("home") or os.environ.get(f"{ENV_PREFIX}HOME") or default).expanduser()


def _as_variable(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ",".join(f'"{item}"' for item in value) + "]"
    return str(value)
