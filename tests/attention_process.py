"""An attention service as a process of its own, with limits that a test chooses."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from lean_image import in_image
from ports import free_port
from prometheus_client.parser import text_string_to_metric_families
from stack import Stack

WAIT_S = 30.0
"""For something that happens within milliseconds on an idle machine."""


@dataclass(frozen=True)
class Service:
    """One attention service as a process."""

    pid: int
    address: str
    metrics_url: str
    log: Path

    def metric(self, name: str) -> float:
        """The value of a metric without labels."""
        with urllib.request.urlopen(self.metrics_url) as answer:
            text = answer.read().decode()
        return next(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name
        )

    def memory_bytes(self, field: str = "VmRSS") -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("the service has ended")

    def held(self) -> Counter[str]:
        """What a leak would add to; to be compared by ``<=``, as a baseline may meet a connection
        that is being closed."""
        process = Path(f"/proc/{self.pid}")
        regions = Path("/dev/shm").glob(f"atlasloop-{self.pid}-*")
        return Counter(
            {
                "regions": len(list(regions)),
                "open files": len(list((process / "fd").iterdir())),
                "calls": int(self.metric("atlasloop_attention_calls_admitted")),
                "windows in flight": int(self.metric("atlasloop_attention_windows_in_flight")),
            }
        )

    def idle(self) -> bool:
        held = self.held()
        return held["calls"] == 0 and held["windows in flight"] == 0

    def channel(self, *options: tuple[str, int]) -> grpc.Channel:
        unlimited = ("grpc.max_send_message_length", -1)
        return grpc.insecure_channel(self.address, [unlimited, *options])

    def serves(self) -> bool:
        """What the health service says."""
        with self.channel() as channel, contextlib.suppress(grpc.RpcError):
            health = health_pb2_grpc.HealthStub(channel)
            answer = health.Check(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
        return False


@contextlib.contextmanager
def attention_process(
    stack: Stack, folder: Path, settings: Mapping[str, object]
) -> Iterator[Service]:
    """A service in front of the Triton of `stack`, once it is healthy.

    Args:
        settings: by the names of variables without their prefix.
    """
    grpc_port, metrics_port = free_port(), free_port()
    own = {
        "LISTEN": f"127.0.0.1:{grpc_port}",
        "METRICS_LISTEN": f"127.0.0.1:{metrics_port}",
        "TRITON": stack.triton_grpc,
        "TRITON_TLS": stack.settings.triton_client_tls.model_dump_json(),
        "STORE": folder / "store",
        **settings,
    }
    variables = {f"ATLAS_ATTENTION_{name}": str(value) for name, value in own.items()}
    log = folder / "service.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "atlas_attention"],
            env=in_image("attention", {**os.environ, **variables}),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        service = Service(
            process.pid, f"127.0.0.1:{grpc_port}", f"http://127.0.0.1:{metrics_port}/metrics", log
        )
        await_that(service.serves, "the service is healthy")
        yield service
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=WAIT_S)


def await_that(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {WAIT_S} s: {what}"
        time.sleep(0.05)
