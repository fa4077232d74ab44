"""A real embedded stack in a folder of its own, for tests: Triton, attention service, Prefect.

The fixture `stack` is shared by the session (Triton with three tiny models, and the attention
service); `prefect_stack` is the same one with a Prefect server beside. A test that kills parts
calls `restart` afterwards, or opens a stack of its own with `open_stack`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import tritonclient.grpc as triton
from atlas_core.tls import tritonclient_arguments
from atlas_embedded import processes
from atlas_embedded.settings import ComponentName, EmbeddedSettings
from atlas_embedded.stack import ComponentStatus, down, status, up
from ports import free_port
from triton_server import REPOSITORY, export_tiny_model

DEMO_MODELS = REPOSITORY / "models" / "demo"

HOME_NAME = "h\u00fc #1 100%20 ?a=b;$(touch evil) '\"&"
"""Of the shared stack's home: whatever people call their folders, it is used as it is."""

PORT_FIELDS = tuple(name for name in EmbeddedSettings.model_fields if name.endswith("_port"))


@dataclass(frozen=True)
class Stack:
    """A running stack; everything else about it is in `settings`."""

    settings: EmbeddedSettings

    @property
    def home(self) -> Path:
        return self.settings.home

    @property
    def triton_grpc(self) -> str:
        return self.settings.triton_grpc

    @property
    def attention_address(self) -> str:
        return self.settings.attention_address

    @property
    def prefect_api_url(self) -> str:
        return self.settings.prefect_api_url

    def triton_client(self) -> triton.InferenceServerClient:
        """A client that this stack's Triton lets in."""
        return triton.InferenceServerClient(
            self.triton_grpc, **tritonclient_arguments(self.settings.triton_client_tls)
        )

    def status(self) -> dict[str, ComponentStatus]:
        return {row.name: row for row in status(self.settings)}

    def pids(self, name: ComponentName | None = None) -> set[int]:
        """Living processes of the stack, or of one part of it."""
        return {process.pid for process in processes.marked(self.settings.stack_id, name)}

    def kill(self, name: ComponentName) -> None:
        """SIGKILL to the first process of a part, without a warning to anybody."""
        pid = self.status()[name].pid
        assert pid is not None, f"{name} does not run"
        process = psutil.Process(pid)
        process.kill()
        process.wait(timeout=30)

    def restart(self) -> None:
        """Bring up again whatever does not run or is not healthy."""
        up(self.settings)

    def environment(self) -> dict[str, str]:
        """Variables for a process that works with this stack."""
        return {**os.environ, **self.settings.environment()}


def free_settings(
    home: Path, models_dir: Path, parts: Sequence[ComponentName], **fields: object
) -> EmbeddedSettings:
    """Settings of a stack in `home` on free ports."""
    ports = {name: free_port() for name in PORT_FIELDS}
    return EmbeddedSettings.model_validate(
        {"home": home, "models_dir": models_dir, "components": tuple(parts), **ports, **fields}
    )


@contextlib.contextmanager
def open_stack(
    home: Path, models_dir: Path, parts: Sequence[ComponentName], **fields: object
) -> Iterator[Stack]:
    """A stack of one's own; down at the end, whatever happened."""
    settings = free_settings(home, models_dir, parts, **fields)
    try:
        up(settings)
        yield Stack(settings)
    finally:
        down(settings)


@pytest.fixture(scope="session")
def stack_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of three tiny exported models of the same organs; see `export_tiny_model`."""
    root = tmp_path_factory.mktemp("stack-models")
    for seed, name in enumerate(("conv_a", "conv_b", "conv_c")):
        export_tiny_model(root / name, name, seed=seed)
    return root


@pytest.fixture(scope="session")
def stack(stack_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Triton with the tiny models, and the attention service."""
    home = tmp_path_factory.mktemp("stack") / HOME_NAME
    with open_stack(home, stack_models, ("triton", "attention")) as opened:
        yield opened


@pytest.fixture(scope="session")
def prefect_stack(stack: Stack) -> Stack:
    """`stack` with a Prefect server beside; goes down with it."""
    settings = stack.settings.model_copy(update={"components": ("triton", "attention", "prefect")})
    up(settings)
    return Stack(settings)
