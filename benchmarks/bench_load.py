"""1, 4 and 16 concurrent gRPC clients on one attention service: does it hold?

Every client sends its own CT (`AttendVolume`) and takes attention maps of all organs and the pseudo
label back, one call after the other, each on a connection of its own. All levels run against one
service, in one run; before each of them its memory peak is set back. Every answer is compared with
the first: a service under load must not only answer, but answer the same.
"""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from atlas_core.imaging import Volume
from atlasloop.client import AttentionClient, AttentionServiceError
from bench.inputs import describe, small_ct
from bench.measurement import GIB, forget_peak, machine, peak_bytes, report, say
from bench.serving import Serving, serving

CLIENTS = (1, 4, 16)

CALLS = 32
"""Of each level, shared by its clients: two for each of sixteen."""

TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Call:
    """One call as its client saw it; `digest` is None when it failed."""

    seconds: float
    digest: str | None
    error: str = ""


def main() -> None:
    described = machine("grpcio", "numpy")
    ct = small_ct()
    with serving() as stack:
        truth = _call(stack.address, ct).digest
        levels = {clients: _level(stack, ct, clients, truth) for clients in CLIENTS}
    fewest, most = levels[CLIENTS[0]], levels[CLIENTS[-1]]
    report(
        "load",
        errors=sum(level["errors"] for level in levels.values()),
        throughput_ratio=round(
            min(level["calls_per_s"] for level in levels.values()) / fewest["calls_per_s"], 3
        ),
        memory_ratio=round(most["service_gib"] / fewest["service_gib"], 3),
        clients={str(clients): level for clients, level in levels.items()},
        inputs={"ct": describe(ct), "calls_per_level": CALLS},
        machine=described,
    )


def _level(stack: Serving, ct: Volume, clients: int, truth: str | None) -> dict[str, Any]:
    say(f"{clients} clients")
    forget_peak(stack.service_pids())
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        calls = list(pool.map(lambda _: _call(stack.address, ct), range(CALLS)))
    elapsed = time.perf_counter() - began
    for error in {call.error for call in calls if call.error}:
        say(f"error: {error}")
    seconds = [call.seconds for call in calls]
    return {
        "calls_per_s": round(len(calls) / elapsed, 3),
        "p50_s": round(float(np.quantile(seconds, 0.5)), 3),
        "p99_s": round(float(np.quantile(seconds, 0.99)), 3),
        "errors": sum(call.digest is None or call.digest != truth for call in calls),
        "service_gib": round(peak_bytes(stack.service_pids()) / GIB, 3),
    }


def _call(address: str, ct: Volume) -> Call:
    began = time.perf_counter()
    digest = hashlib.sha256()
    try:
        with (
            AttentionClient(address, TIMEOUT_S) as client,
            client.stream_volume(ct.voxels, ct.geometry.matrix) as stream,
        ):
            for slab in stream:
                # The bytes in the order in which they came: no copy.
                digest.update(slab.attention.transpose(0, 3, 2, 1).data)
                digest.update(slab.label.transpose(2, 1, 0).data)
            stream.result  # noqa: B018  raises unless the result came
    except AttentionServiceError as error:
        return Call(time.perf_counter() - began, None, str(error))
    return Call(time.perf_counter() - began, digest.hexdigest())


if __name__ == "__main__":
    main()
