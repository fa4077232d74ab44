"""Where catalog, case store and services are, for commands and flows.

On one machine everything follows from the embedded stack's settings (its home folder and ports). A
deployment sets the addresses themselves, by ``ATLASLOOP_<FIELD>``.
"""

from __future__ import annotations

import os
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from atlas_core.errors import ConfigurationError, Unavailable
from atlas_core.organs import SchemeSetting, read_scheme
from atlas_core.tls import TlsFiles
from atlas_embedded.settings import EmbeddedSettings
from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

if TYPE_CHECKING:
    from atlas_core.catalog import Catalog


class FlowSettings(BaseSettings):
    """Addresses that differ from those of the embedded stack, and the schedule."""

    model_config = SettingsConfigDict(env_prefix="ATLASLOOP_", frozen=True, extra="ignore")

    catalog_url: str | None = Field(
        default=None, description="SQLAlchemy address of the catalog; empty: <home>/catalog.sqlite."
    )
    store: Path | None = Field(
        default=None, description="Root of the case store; empty: <home>/store."
    )
    organs: Annotated[
        SchemeSetting | None, NoDecode, BeforeValidator(lambda given: given or None)
    ] = Field(
        default=None,
        description="Organs of a new atlas: a shipped scheme (abdomen_atlas_1_0, "
        "abdomen_atlas_1_1, totalsegmentator_v2), the path of a YAML file, or JSON. An atlas that "
        "has cases keeps its own, and other ones are refused; empty: those that the catalog "
        "remembers, which begins with abdomen_atlas_1_0.",
    )
    attention_address: str | None = Field(
        default=None, description="host:port of the attention service; empty: the embedded one."
    )
    prefect_api_url: str | None = Field(
        default=None, description="Of the Prefect server; empty: the embedded one."
    )
    prefect_hosts: str = Field(
        default="",
        description="Host names, comma-separated, by which the Prefect server may be asked beside "
        "127.0.0.1 and localhost; it reads them itself.",
    )
    review_role: str | None = Field(
        default=None,
        description="PostgreSQL role of the review service, which migrations give its rights; "
        "empty: it uses the flows' own.",
    )
    review_url: str | None = Field(
        default=None, description="Of the review page, for links; empty: the embedded one."
    )
    notification_block: str | None = Field(
        default=None,
        description="Prefect block that tells people what the loop does, as slack-webhook/loop; "
        "empty: no notifications.",
    )
    score_schedule: str | None = Field(
        default=None, description="Cron line for the flow `score`; empty: only when started."
    )
    score_parameters: dict[str, Any] = Field(
        default_factory=dict,
        description="Parameters of the flow `score` where nobody gives others, as JSON; so of runs "
        'by schedule, and of iterations what concerns shards: {"shards": 4, "in_flight": 4}.',
    )
    promotion_margin: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="By how much mean Dice may fall when a new version of a model is promoted.",
    )
    promotion_min_cases: int = Field(
        default=5, ge=1, description="On fewer cases no version is judged, unless by --force."
    )
    promotion_floor: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Mean Dice that the first version of a model needs to join the ensemble.",
    )
    triton_address: str | None = Field(
        default=None,
        description="host:port of Triton's gRPC endpoint, to load models; of several, "
        "comma-separated, or a name that resolves to all. Empty: the embedded one.",
    )
    triton_control_key: SecretStr | None = Field(
        default=None,
        description="Secret of Triton's restricted model control, where it has one. In our images "
        "it comes out of a file: ATLASLOOP_TRITON_CONTROL_KEY__FILE.",
    )
    triton_tls: TlsFiles | None = Field(
        default=None,
        description="Our certificate for a Triton that asks for one, as JSON with `authority`, "
        "`certificate` and `key`, paths of PEM files; empty: the embedded one's.",
    )
    triton_load_timeout_s: float | None = Field(
        default=None,
        gt=0,
        description="For loading one model; TensorRT builds for minutes. Empty: start_timeout_s.",
    )
    model_repository: Path | None = Field(
        default=None,
        description="Triton's model repository, on a volume that Triton reads; "
        "empty: <home>/triton-repository.",
    )
    model_store: Path | None = Field(
        default=None,
        description="Exported models with their weights; empty: <home>/models.",
    )
    training_runs: Path | None = Field(
        default=None,
        description="Checkpoints, by which a killed training goes on; empty: <home>/runs.",
    )
    landing: Path | None = Field(
        default=None,
        description="Folder that people put files into for flows, and find results of flows in: "
        "paths in the forms of the Prefect UI lie below it. Empty: <home>/landing.",
    )
    training_deployment: str | None = Field(
        default=None,
        description="Prefect deployment that trains for the loop, as finetune/finetune: the run of "
        "the loop then needs no GPU itself. Empty: the loop trains in its own run.",
    )
    metrics_listen: str = Field(
        default="",
        description="HOST:PORT of Prometheus metrics of the loop, served by what serves the flows "
        "and by what delivers events; empty: none.",
    )
    metrics_hosts: str = Field(
        default="",
        description="Host names, comma-separated, by which these metrics may be asked for, beside "
        "IP addresses and localhost.",
    )
    nnunet_python: Path | None = Field(
        default=None,
        description="Python interpreter with nnunetv2, which trains imported nnU-Nets further; "
        "empty: the one that runs the flows.",
    )


class Places:
    """Settings of this process, resolved: every address is there.

    Attributes:
        embedded: settings of the one-machine stack.
        organs: of a new atlas; None: those that the catalog remembers.
        model_repository: Triton's; None: the embedded one, which follows from `embedded`.
        others: see `FlowSettings`.
    """

    def __init__(self, embedded: EmbeddedSettings, flow: FlowSettings) -> None:
        self.embedded = embedded
        self.catalog_url = flow.catalog_url or embedded.catalog_url
        self.store = flow.store or embedded.store
        self.attention_address = flow.attention_address or embedded.attention_address
        self.organs = flow.organs
        self.review_role = flow.review_role or None
        self.prefect_api_url = flow.prefect_api_url or embedded.prefect_api_url
        self.review_url = (flow.review_url or embedded.review_url).rstrip("/")
        self.notification_block = flow.notification_block or None
        self.score_schedule = flow.score_schedule or None
        self.score_parameters = flow.score_parameters
        self.promotion_margin = flow.promotion_margin
        self.promotion_min_cases = flow.promotion_min_cases
        self.promotion_floor = flow.promotion_floor
        self.triton_address = flow.triton_address or embedded.triton_grpc
        # Its own Triton lets nobody else in; one that somebody else runs is reached as it is.
        own = embedded.triton_client_tls if flow.triton_address is None else None
        self.triton_tls = flow.triton_tls or own
        self.triton_control_key = flow.triton_control_key
        self.triton_load_timeout_s = flow.triton_load_timeout_s or embedded.start_timeout_s
        self.model_repository = flow.model_repository
        self.model_store = flow.model_store or embedded.home / "models"
        self.training_runs = flow.training_runs or embedded.home / "runs"
        self.landing = flow.landing or embedded.home / "landing"
        self.training_deployment = flow.training_deployment or None
        self.metrics_listen = flow.metrics_listen
        self.metrics_hosts = flow.metrics_hosts
        self.nnunet_python = flow.nnunet_python

    @property
    def score_shards(self) -> int:
        """Runs that may share the work of scoring; see flow `score`."""
        return max(1, int(self.score_parameters.get("shards", 1)))

    @classmethod
    def read(cls, home: Path | None = None, port_base: int | None = None) -> Self:
        """From the arguments, the environment and ``<home>/config.toml``.

        Raises:
            ConfigurationError: a value that cannot work, with its name.
        """
        try:
            given = {"home": home, "port_base": port_base}
            chosen = {name: value for name, value in given.items() if value is not None}
            return cls(EmbeddedSettings.model_validate(chosen), FlowSettings())
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigurationError(
                f"setting {'.'.join(str(part) for part in first['loc'])} cannot work",
                expected=first["msg"],
                got=repr(first.get("input")),
            ) from None

    def choose_organs(self, catalog: Catalog, given: str | None = None) -> None:
        """Make the organs that were asked for those of the atlas; none asked for: it keeps its own.

        Args:
            given: name or file of a scheme, before the setting.

        Raises:
            ConfigurationError: no such scheme.
            Conflict: the atlas has cases, and other organs.
        """
        from atlas_core.catalog import choose_organs

        wanted = self.organs if given is None else read_scheme(given)
        if wanted is not None:
            choose_organs(catalog, wanted)

    def grant_rights(self, catalog: Catalog) -> None:
        """Give the review service's role its rights, where it has one of its own.

        Raises:
            ConfigurationError: the database has no such role.
        """
        if self.review_role is not None:
            from atlas_core.catalog import grant_review_rights

            grant_review_rights(catalog, self.review_role)

    def enter_prefect(self, *, quiet: bool = False) -> None:
        """Point this process's Prefect to our server, and its flows, which read their settings from
        the environment, to these; call it before `prefect` is first imported.

        Args:
            quiet: only problems on the terminal; the run's log in the UI stays complete.
        """
        # Not above: it loads the model server's client, which most commands do without.
        from atlas_embedded.access import prefect_auth
        from atlas_embedded.components import prefect_variables

        os.environ.update(prefect_variables(self.embedded))
        os.environ["PREFECT_API_URL"] = self.prefect_api_url
        if self.prefect_api_url == self.embedded.prefect_api_url:
            # Our own server's; whoever names another one brings its password along, if it has any.
            os.environ["PREFECT_API_AUTH_STRING"] = prefect_auth(self.embedded)
        os.environ["ATLASLOOP_HOME"] = str(self.embedded.home.absolute())
        if quiet:
            os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"

    def require_prefect(self) -> None:
        """Refuse to start a run that no server would show.

        Raises:
            Unavailable: the Prefect server does not answer.
        """
        # http.client is no choice here: the address may be https behind a proxy.
        request = urllib.request.Request(f"{self.prefect_api_url}/health")  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
                answer.read()
        except OSError as error:
            raise Unavailable(
                f"the Prefect server at {self.prefect_api_url} does not answer",
                got=getattr(error, "reason", error),
                remedy="start the stack with `atlasloop up`, or set ATLASLOOP_PREFECT_API_URL",
            ) from None
