"""The parts of the embedded stack as data: how each is started, found healthy, and stopped.

A new part is one more function here and one more name in `ComponentName`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from atlas_attention.triton.shared_memory import SHARED_MEMORY
from atlas_attention.triton.shared_memory import sweep as sweep_attention_regions
from atlas_core.atomic_writes import replace_file
from atlas_core.catalog import Catalog
from atlas_review.auth import ACCOUNTS_FILE, FIRST_USER, Accounts, Role

from atlas_embedded import probes
from atlas_embedded.access import make_access, prefect_auth
from atlas_embedded.model_trials import tidy
from atlas_embedded.processes import COMPONENT_VARIABLE, STACK_VARIABLE, marked
from atlas_embedded.settings import HOST, ComponentName, EmbeddedSettings, sqlite_url
from atlas_embedded.triton_environment import TritonEnvironment, find_triton
from atlas_embedded.triton_models import TritonModels, install_models, repository_of

_REGION_PAUSE_S = 1.0
"""Triton needs milliseconds from making a region to starting the process that works in it."""

Probe = Callable[[], str]
"""Returns a word for people; raises `Unavailable`."""


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Launch:
    """What starts a part.

    Attributes:
        command: program, by its absolute path, and arguments.
        variables: what this part needs beside the variables that all parts share.
        folder: its working directory.
    """

    command: tuple[str, ...]
    variables: Mapping[str, str]
    folder: Path = Path()

    def environment(self, settings: EmbeddedSettings, name: ComponentName) -> dict[str, str]:
        """All variables of the process, ours from outside included."""
        # What points Prefect elsewhere (a profile, a key of the cloud) is not meant for this stack.
        outer = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
        return {
            **outer,
            "PYTHONUNBUFFERED": "1",  # a log that is written when something happens
            **settings.environment(),
            **prefect_variables(settings),
            **self.variables,
            STACK_VARIABLE: settings.stack_id,
            COMPONENT_VARIABLE: name,
        }

    @property
    def digest(self) -> str:
        """Tells whether a running process was started as it would be started now."""
        text = json.dumps([self.command, sorted(self.variables.items())])
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Component:
    """One part of the stack.

    Attributes:
        name: also that of its log and record.
        address: where it is reached.
        port_fields: settings that hold its ports.
        prepare: checks what it needs, before anything is started.
        launch: command and environment; called after `prepare`.
        answers: does the process answer at all?
        settle: brings an answering process fully into service, mending what is broken in it.
        healthy: does it really work?
        needs: parts that must be healthy before it is started.
        clear: removes what its processes leave behind when they are killed; none of them lives.
    """

    name: ComponentName
    address: str
    port_fields: tuple[str, ...]
    launch: Callable[[], Launch]
    healthy: Probe
    answers: Probe
    prepare: Callable[[], None] = _nothing
    settle: Callable[[], None] = _nothing
    needs: tuple[ComponentName, ...] = ()
    clear: Callable[[], None] = field(default=_nothing)


def components(settings: EmbeddedSettings) -> tuple[Component, ...]:
    """The parts that `settings` ask for, in the order in which they are started."""
    makers: dict[ComponentName, Callable[[EmbeddedSettings], Component]] = {
        "triton": _triton,
        "attention": _attention,
        "review": _review,
        "prefect": _prefect,
        "flows": _flows,
    }
    return tuple(make(settings) for name, make in makers.items() if name in settings.components)


def _triton(settings: EmbeddedSettings) -> Component:
    @functools.cache  # it asks another Python, which takes its time
    def found() -> TritonEnvironment:
        return find_triton(settings.triton_environment)

    def prepare() -> None:
        found()
        make_access(settings)
        install_models(settings)

    def launch() -> Launch:
        environment = found()
        tls = settings.triton_server_tls
        command = (
            str(environment.binary),
            f"--model-repository={settings.seen_by_triton(settings.repository)}",
            f"--backend-directory={environment.backends}",
            "--model-control-mode=explicit",
            # config.pbtxt says everything; guessing would only hide a mistake in it.
            "--disable-auto-complete-config",
            # One broken model must not take the others out of service.
            "--strict-readiness=false",
            f"--exit-timeout-secs={max(1, int(settings.stop_timeout_s) // 2)}",
            # A model brings code along: only who has this stack's client key may come near. The
            # HTTP endpoint cannot keep a web page out, and nothing here needs it.
            "--allow-http=false",
            "--grpc-use-ssl=true",
            "--grpc-use-ssl-mutual=true",
            f"--grpc-root-cert={tls.authority}",
            f"--grpc-server-cert={tls.certificate}",
            f"--grpc-server-key={tls.key}",
            # Nor can the one of metrics, which answers whatever host name it is asked for by.
            "--allow-metrics=false",
            f"--grpc-address={HOST}",
            f"--grpc-port={settings.triton_grpc_port}",
            # By this name the regions of this very stack are found after a crash.
            f"--backend-config=python,shm-region-prefix-name={_region_prefix(settings)}",
        )
        return Launch(command, environment.variables(), settings.home)

    def models() -> TritonModels:
        return TritonModels(
            settings.triton_grpc,
            repository_of(settings),
            settings.start_timeout_s,
            log=settings.log("triton"),
            tls=settings.triton_client_tls,
        )

    def settle() -> None:
        tidy(models(), settings.catalog_url)
        models().put_into_service()
        _remove_regions(settings)

    return Component(
        name="triton",
        address=settings.triton_grpc,
        port_fields=("triton_grpc_port",),
        prepare=prepare,
        launch=launch,
        answers=lambda: models().require_alive(),
        settle=settle,
        healthy=lambda: models().require_answers(),
        clear=lambda: _remove_regions(settings),
    )


def _organs(settings: EmbeddedSettings) -> str:
    """What the catalog remembers, as a service's setting: it is started again when that changes."""
    with Catalog.open(settings.catalog_url) as catalog:
        return catalog.organ_scheme().model_dump_json(exclude_defaults=True)


def _attention(settings: EmbeddedSettings) -> Component:
    def launch() -> Launch:
        tls = settings.triton_client_tls
        variables = {
            "ATLAS_ATTENTION_LISTEN": settings.attention_address,
            "ATLAS_ATTENTION_METRICS_LISTEN": f"{HOST}:{settings.attention_metrics_port}",
            "ATLAS_ATTENTION_TRITON": settings.triton_grpc,
            "ATLAS_ATTENTION_TRITON_TLS": tls.model_dump_json(),
            "ATLAS_ATTENTION_STORE": str(settings.store),
            "ATLAS_ATTENTION_ORGANS": _organs(settings),
        }
        return Launch(
            (sys.executable, "-m", "atlas_attention"),
            variables,
        )

    return Component(
        name="attention",
        address=settings.attention_address,
        port_fields=("attention_port", "attention_metrics_port"),
        prepare=lambda: settings.store.mkdir(parents=True, exist_ok=True),
        launch=launch,
        answers=lambda: probes.attention_answers(settings.attention_address),
        healthy=lambda: probes.attention_serves(settings.attention_address),
        needs=("triton",),
        clear=_sweep_attention,
    )


def _sweep_attention() -> None:
    sweep_attention_regions()


def _review(settings: EmbeddedSettings) -> Component:
    def prepare() -> None:
        settings.store.mkdir(parents=True, exist_ok=True)
        make_first_account(settings)

    def launch() -> Launch:
        variables = {
            "ATLAS_REVIEW_LISTEN": f"{HOST}:{settings.review_port}",
            "ATLAS_REVIEW_METRICS_LISTEN": f"{HOST}:{settings.review_metrics_port}",
            "ATLAS_REVIEW_STORE": str(settings.store),
            "ATLAS_REVIEW_CATALOG_URL": settings.catalog_url,
            "ATLAS_REVIEW_HOME": str(settings.review_home),
            "ATLAS_REVIEW_ORGANS": _organs(settings),
        }
        return Launch((sys.executable, "-m", "atlas_review"), variables)

    def probe() -> str:
        return probes.review_serves(settings.review_port)

    return Component(
        name="review",
        address=settings.review_url,
        port_fields=("review_port", "review_metrics_port"),
        prepare=prepare,
        launch=launch,
        answers=probe,
        healthy=probe,
    )


def make_first_account(settings: EmbeddedSettings) -> None:
    """The account that people begin with, before the review service starts for the first time.

    Its password is in a file before the account is: a start that fails, or is killed, loses
    neither.
    """
    accounts, kept = _accounts(settings), settings.review_password_file
    if "review" not in settings.components or accounts.path.exists():
        return
    make_access(settings)
    if not kept.exists():
        replace_file(kept, f"{secrets.token_urlsafe(12)}\n".encode(), mode=0o600)
    accounts.create(kept.read_text(encoding="ascii").strip())


def first_account(settings: EmbeddedSettings) -> tuple[str, Path] | None:
    """Name of the first account, and the file with its password; None: people have changed it."""
    kept = settings.review_password_file
    if not kept.exists():
        return None
    password = kept.read_text(encoding="ascii").strip()
    return (FIRST_USER, kept) if _accounts(settings).by_password(FIRST_USER, password) else None


def _accounts(settings: EmbeddedSettings) -> Accounts:
    return Accounts(settings.review_home / ACCOUNTS_FILE)


def review_token(settings: EmbeddedSettings, name: str) -> str:
    """A token for a machine that works as an annotator in this stack's review service; the one it
    had before is no longer valid."""
    return _accounts(settings).add_token(name, (Role.ANNOTATOR,))


def _prefect(settings: EmbeddedSettings) -> Component:
    def probe() -> str:
        return probes.prefect_answers(settings.prefect_port)

    def launch() -> Launch:
        origins = [f"{host}:{settings.prefect_port}" for host in (HOST, "localhost")]
        sources = " ".join(f"http://{origin} ws://{origin}" for origin in origins)
        command = (
            sys.executable,
            *("-m", "uvicorn", "--factory", "atlas_flows.prefect_server:create_app"),
            *("--host", HOST, "--port", str(settings.prefect_port)),
            # The UI would let browsers talk to an analytics host; its server has no switch for it.
            *("--header", f"Content-Security-Policy:connect-src 'self' {sources}"),
            *("--timeout-graceful-shutdown", str(max(1, int(settings.stop_timeout_s) // 2))),
            *("--log-level", "warning"),
        )
        variables = {
            "PREFECT__SERVER_FINAL": "1",
            # Its default would take "?", "#" and "%" in the path for parts of an address.
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": sqlite_url(
                settings.prefect_home / "prefect.db", "sqlite+aiosqlite"
            ),
            "PREFECT_SERVER_API_HOST": HOST,
            # A run that waits for another one looks again soon: at half a minute each, a good run
            # waited for minutes behind a few that failed at once.
            "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "3",
            "PREFECT_SERVER_API_PORT": str(settings.prefect_port),
            "PREFECT_API_AUTH_STRING": prefect_auth(settings),
            "PREFECT_SERVER_API_AUTH_STRING": prefect_auth(settings),
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(f"http://{own}" for own in origins),
        }
        return Launch(command, variables)

    return Component(
        name="prefect",
        address=settings.prefect_url,
        port_fields=("prefect_port",),
        # Where runs keep results: commands start some, by their user's umask.
        prepare=lambda: (settings.prefect_home / "storage").mkdir(parents=True, exist_ok=True),
        launch=launch,
        answers=probe,
        healthy=probe,
    )


def _flows(settings: EmbeddedSettings) -> Component:
    def probe() -> str:
        return probes.flows_served(settings.prefect_port, prefect_auth(settings))

    return Component(
        name="flows",
        address=settings.prefect_url,
        port_fields=(),
        launch=lambda: Launch(
            (sys.executable, "-m", "atlas_flows.serve"),
            {
                "PREFECT_API_URL": settings.prefect_api_url,
                "PREFECT_API_AUTH_STRING": prefect_auth(settings),
                "ATLASLOOP_ATTENTION_PORT": str(settings.attention_port),
            },
        ),
        answers=probe,
        healthy=probe,
        needs=("prefect", "attention"),
    )


def prefect_variables(settings: EmbeddedSettings) -> dict[str, str]:
    """Variables by which Prefect, client or server, works with this stack and calls nobody else."""
    return {
        "PREFECT_HOME": str(settings.prefect_home),
        "PREFECT_API_URL": settings.prefect_api_url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }


def _region_prefix(settings: EmbeddedSettings) -> str:
    # Not the attention service's prefix: that one sweeps regions of its own whose owner is dead.
    return f"atlas-triton-{settings.stack_id}-"


def _remove_regions(settings: EmbeddedSettings) -> None:
    """Removes the shared memory of model processes that were killed; the living keep theirs.

    A process is started right after its region was made, and is given the name as an argument. A
    region that had no process twice, a pause apart, has lost it.
    """
    orphaned = _regions_without_process(settings)
    if orphaned and marked(settings.stack_id, "triton"):
        time.sleep(_REGION_PAUSE_S)
        orphaned &= _regions_without_process(settings)
    for name in orphaned:
        (SHARED_MEMORY / name).unlink(missing_ok=True)


def _regions_without_process(settings: EmbeddedSettings) -> set[str]:
    found = {path.name for path in SHARED_MEMORY.glob(f"{_region_prefix(settings)}*")}
    for process in marked(settings.stack_id, "triton"):
        with contextlib.suppress(psutil.Error):  # it has just ended
            found.difference_update(process.cmdline())
    return found
