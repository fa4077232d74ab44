"""Real servers for benchmarks, in folders and on ports of their own; stopped at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tritonclient.grpc as triton
from atlas_core.store import CaseStore
from atlas_embedded import processes
from atlas_embedded.settings import EmbeddedSettings
from atlas_embedded.stack import down, up
from atlas_embedded.triton_environment import find_triton
from bench.measurement import say
from tritonclient.utils import InferenceServerException

# The ports of the tests are the ports of the benchmarks.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from ports import free_port

REPOSITORY = Path(__file__).resolve().parents[2]
TRITON_ENVIRONMENT = REPOSITORY / ".venv-triton"

START_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Serving:
    """Triton with an ensemble, and the attention service, on this machine."""

    settings: EmbeddedSettings

    @property
    def address(self) -> str:
        """Of the attention service."""
        return self.settings.attention_address

    @property
    def store(self) -> CaseStore:
        return CaseStore(self.settings.store)

    def service_pids(self) -> list[int]:
        """The attention service."""
        return self._pids("attention")

    def triton_pids(self) -> list[int]:
        """The server and the stub process of every model."""
        return self._pids("triton")

    def _pids(self, name: str) -> list[int]:
        return [process.pid for process in processes.marked(self.settings.stack_id, name)]


def end_in_order() -> None:
    """SIGTERM unwinds like an interrupt does: what was started outlives nobody."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


@contextmanager
def serving(models_dir: Path | None = None) -> Iterator[Serving]:
    """The embedded stack without Prefect; every model has answered once when this returns.

    Args:
        models_dir: exported models; None: ``ATLASLOOP_MODELS_DIR``, or the demo models.
    """
    end_in_order()
    with tempfile.TemporaryDirectory(prefix="atlasloop-bench-") as folder:
        ports = {name: free_port() for name in EmbeddedSettings.model_fields if "port" in name}
        settings = EmbeddedSettings.model_validate(
            {
                "home": Path(folder) / "home",
                "components": ("triton", "attention"),
                "triton_environment": TRITON_ENVIRONMENT,
                **({} if models_dir is None else {"models_dir": models_dir}),
                **ports,
            }
        )
        try:
            up(settings, on_event=say)
            yield Serving(settings)
        finally:
            down(settings)


@contextmanager
def bare_triton(repository: Path, folder: Path) -> Iterator[str]:
    """A Triton with all models of `repository`; its gRPC address. Its log lies in `folder`."""
    end_in_order()
    environment = find_triton(TRITON_ENVIRONMENT)
    grpc_port, http_port = free_port(), free_port()
    command = [
        str(environment.binary),
        f"--model-repository={repository}",
        f"--backend-directory={environment.backends}",
        "--disable-auto-complete-config",
        *(f"--{kind}-address=127.0.0.1" for kind in ("grpc", "http")),
        f"--grpc-port={grpc_port}",
        f"--http-port={http_port}",
        "--allow-metrics=false",
        "--exit-timeout-secs=5",
    ]
    log = folder / "triton.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment.variables()},
        )
    try:
        address = f"127.0.0.1:{grpc_port}"
        _await_ready(server, address, log)
        yield address
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=30)


def _await_ready(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    with triton.InferenceServerClient(address) as client:
        while True:
            try:
                if client.is_server_ready():
                    return
            except InferenceServerException:
                pass  # nobody listens yet
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Triton is not ready:\n{log.read_text()[-3000:]}")
            time.sleep(0.05)
