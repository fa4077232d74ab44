"""Network namespaces stand for nodes: Triton on one, the attention service on another.

Phantoms are scored with both on one machine by shared memory, by messages, and on two nodes over
links of growing delay and loss. Every file of every prediction must be equal to the bit; cases an
hour are reported for each. Delay and loss are the kernel's (`tc` with netem) where it has them, and
otherwise those of `slow_link`. Needs Linux, root, and `ip`; exit status 2 where it cannot be done.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from atlas_core.imaging import Volume
from atlas_core.phantoms import PhantomGrid, make_phantom
from atlas_core.store import CaseStore
from atlas_embedded.settings import EmbeddedSettings
from atlas_embedded.triton_environment import find_triton
from atlas_models.serving import CpuServing, TritonRepository, exported_models
from atlasloop.client import AttentionClient
from bench.measurement import machine, report, say
from bench.serving import TRITON_ENVIRONMENT, end_in_order
from grpc_health.v1 import health_pb2, health_pb2_grpc

MODELS_NODE, ATTENTION_NODE = "atlasloop-models", "atlasloop-attention"
MODELS_ADDRESS, ATTENTION_ADDRESS = "10.231.77.1", "10.231.77.2"
TRITON_PORT, ATTENTION_PORT = 8001, 18010
LINK = "link0"
START_S = 120.0


@dataclass(frozen=True)
class Link:
    """What lies between the service and the models.

    Attributes:
        name: for the report.
        memory: ``shared_memory`` of the attention service.
        apart: on two nodes.
        round_trip_ms: of a packet.
        loss: share of the packets, each way.
    """

    name: str
    memory: str = "none"
    apart: bool = True
    round_trip_ms: float = 0.0
    loss: float = 0.0


LINKS = (
    Link("one machine, shared memory", memory="system", apart=False),
    Link("one machine, messages", apart=False),
    Link("two nodes"),
    Link("two nodes, 1 ms", round_trip_ms=1.0),
    Link("two nodes, 10 ms, 0.1 % lost", round_trip_ms=10.0, loss=0.001),
    Link("two nodes, 40 ms, 1 % lost", round_trip_ms=40.0, loss=0.01),
)


def main() -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=4)
    parser.add_argument(
        "--links", type=int, nargs="*", help="of the list, from 0; the first always"
    )
    parser.add_argument("--columns", type=int, default=160, help="voxels along a slice")
    parser.add_argument("--score", nargs=2, metavar=("ADDRESS", "CASES"), help="internal")
    wanted = parser.parse_args()
    if wanted.score:
        print(json.dumps(score(wanted.score[0], json.loads(wanted.score[1]))), flush=True)
        return 0
    if os.geteuid() != 0:
        say("network namespaces need root: nothing was checked")
        return 2
    end_in_order()
    described = machine("tritonclient", "grpcio")
    with tempfile.TemporaryDirectory(prefix="atlasloop-nodes-") as name:
        folder = Path(name)
        repository = TritonRepository(folder / "repository", CpuServing(threads=1))
        for exported in exported_models(EmbeddedSettings().models_dir):
            repository.install(exported)
        found, shaped_by = {}, "nothing"
        for number, link in enumerate(LINKS):
            if wanted.links is not None and number not in {0, *wanted.links}:
                continue
            say(link.name)
            store = _store(folder / f"store-{number}", wanted.cases, wanted.columns)
            with connected(link) as shaped, serving(folder, link, store) as address:
                shaped_by = shaped or shaped_by
                found[link.name] = _scored(link, address, store, wanted.cases)
    reference = found[LINKS[0].name]["files"]
    equal = {name: one["files"] == reference for name, one in found.items()}
    report(
        "nodes",
        equal_to_the_bit=all(equal.values()),
        files_compared=len(reference),
        cases_an_hour={name: one["cases_an_hour"] for name, one in found.items()},
        mb_a_window={
            name: round(one["bytes"] / one["windows"] / 1e6, 2)
            for name, one in found.items()
            if one["bytes"]
        },
        windows=found[LINKS[0].name]["windows"],
        differs=[name for name, same in equal.items() if not same],
        inputs={
            "cases": wanted.cases, "columns": wanted.columns, "shaped_by": shaped_by,
            "models": [path.name for path in exported_models(EmbeddedSettings().models_dir)],
        },
        machine=described,
    )  # fmt: skip
    return 0 if all(equal.values()) else 1


def _store(root: Path, cases: int, columns: int) -> CaseStore:
    store = CaseStore(root)
    root.mkdir()
    for seed in range(cases):
        phantom = make_phantom(seed, grid=PhantomGrid(columns=columns, axis_codes="LPS"))
        store.write_ct(f"phantom_{seed}", Volume(phantom.ct, phantom.geometry))
    return store


@contextlib.contextmanager
def connected(link: Link) -> Iterator[str | None]:
    """Two nodes with that link between them; by what it is slow."""
    if not link.apart:
        yield None
        return
    nodes = (MODELS_NODE, ATTENTION_NODE)
    addresses = (MODELS_ADDRESS, ATTENTION_ADDRESS)
    with contextlib.ExitStack() as stack:
        for node in nodes:
            _ip("netns", "add", node)
            stack.callback(_ip, "netns", "delete", node)
            _ip("-n", node, "link", "set", "lo", "up")
        if not (link.round_trip_ms or link.loss):
            _connect_by_cable(nodes, addresses)
            yield None
        elif _has_netem():
            _connect_by_cable(nodes, addresses)
            for node in nodes:
                delay = [f"{link.round_trip_ms / 2}ms", "limit", "100000"]
                lost = ["loss", f"{link.loss:%}"] if link.loss else []
                _in_node(node, "tc", "qdisc", "add", "dev", LINK, "root", "netem", "delay",
                         *delay, *lost)  # fmt: skip
            yield "netem"
        else:
            program = str(Path(__file__).parent / "simulated" / "slow_link.py")
            ends = [word for end in zip(nodes, addresses, strict=True) for word in end]
            shape = [str(link.round_trip_ms / 2), str(link.loss)]
            carrier = stack.enter_context(
                _running([sys.executable, program, *ends, *shape], stdout=subprocess.PIPE)
            )
            assert carrier.stdout is not None
            if carrier.stdout.readline() != b"up\n":
                raise RuntimeError("the link did not come up")
            yield "slow_link"


def _connect_by_cable(nodes: Sequence[str], addresses: Sequence[str]) -> None:
    first, second = nodes
    _ip("link", "add", LINK, "netns", first, "type", "veth", "peer", "name", LINK, "netns", second)
    for node, address in zip(nodes, addresses, strict=True):
        _ip("-n", node, "addr", "add", f"{address}/30", "dev", LINK)
        _ip("-n", node, "link", "set", LINK, "up")


def _has_netem() -> bool:
    """Asked of the loopback of a node, which is up and carries nothing."""
    words = ["tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]
    asked = subprocess.run(
        ["ip", "netns", "exec", MODELS_NODE, *words], capture_output=True, check=False
    )
    return asked.returncode == 0


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _in_node(node: str, *command: str) -> None:
    subprocess.run(["ip", "netns", "exec", node, *command], check=True)


@contextlib.contextmanager
def _running(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.terminate()


@contextlib.contextmanager
def serving(folder: Path, link: Link, store: CaseStore) -> Iterator[str]:
    """Triton and the attention service where the link says; the service's address."""
    models, own = (MODELS_ADDRESS, ATTENTION_ADDRESS) if link.apart else ("127.0.0.1",) * 2
    environment = find_triton(TRITON_ENVIRONMENT)
    triton = [
        str(environment.binary), f"--model-repository={folder / 'repository'}",
        f"--backend-directory={environment.backends}", "--disable-auto-complete-config",
        f"--grpc-address={models}", f"--grpc-port={TRITON_PORT}", "--allow-http=false",
        "--allow-metrics=false", "--exit-timeout-secs=5",
    ]  # fmt: skip
    variables = {
        "ATLAS_ATTENTION_LISTEN": f"{own}:{ATTENTION_PORT}",
        "ATLAS_ATTENTION_METRICS_LISTEN": "",
        "ATLAS_ATTENTION_ALLOW_REMOTE": "true",
        "ATLAS_ATTENTION_TRITON": f"{models}:{TRITON_PORT}",
        "ATLAS_ATTENTION_STORE": str(store.root),
        "ATLAS_ATTENTION_SHARED_MEMORY": link.memory,
    }
    with (
        (folder / "log").open("ab") as log,
        _running(
            [*_where(link, MODELS_NODE), *triton],
            env={**os.environ, **environment.variables()}, stdout=log, stderr=log,
        ),
        _running(
            [*_where(link, ATTENTION_NODE), sys.executable, "-m", "atlas_attention"],
            env={**os.environ, **variables}, stdout=log, stderr=log,
        ),
    ):  # fmt: skip
        yield f"{own}:{ATTENTION_PORT}"


def _where(link: Link, node: str) -> list[str]:
    return ["ip", "netns", "exec", node] if link.apart else []


def _scored(link: Link, address: str, store: CaseStore, cases: int) -> dict[str, Any]:
    """Cases an hour, and the SHA-256 of every file of the predictions."""
    names = [f"phantom_{seed}" for seed in range(cases)]
    said = subprocess.run(
        [*_where(link, ATTENTION_NODE), sys.executable, __file__, "--score", address,
         json.dumps(names)],
        stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    seconds, windows = json.loads(said.stdout)
    files = {
        str(path.relative_to(store.root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in store.files()
        if path.suffix == ".gz"
    }
    return {
        "cases_an_hour": round(cases / seconds * 3600, 1), "files": files, "windows": windows,
        "bytes": _carried() if link.apart else 0,
    }  # fmt: skip


def _carried() -> int:
    """Bytes over the link, both ways, headers and what was sent again included."""
    words = ["ip", "-n", ATTENTION_NODE, "-json", "-statistics", "link", "show", "dev", LINK]
    said = subprocess.run(words, stdout=subprocess.PIPE, check=True)
    (one,) = json.loads(said.stdout)
    return int(one["stats64"]["rx"]["bytes"] + one["stats64"]["tx"]["bytes"])


def score(address: str, cases: Sequence[str]) -> tuple[float, int]:
    """Seconds for as many cases, the first not measured, as it makes the service warm; and the
    windows of all models."""
    _await_serving(address)
    with AttentionClient(address) as client:
        windows = client.score_case(cases[0]).timing.windows
        began = time.monotonic()
        windows += sum(client.score_case(case).timing.windows for case in cases[1:])
    return (time.monotonic() - began) * len(cases) / (len(cases) - 1), windows


def _await_serving(address: str) -> None:
    until = time.monotonic() + START_S
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while True:
            with contextlib.suppress(grpc.RpcError):
                answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            if time.monotonic() > until:
                raise TimeoutError(f"{address} does not serve")
            time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
