"""Peak memory of the attention service for 800 slices against 200 slices of 512 × 512 voxels.

Each length is scored by a service of its own, freshly started: attention maps of all organs and the
pseudo label are written to the case store, as in production. Counted is what the kernel counts as
resident in the service's process at its worst moment (`VmHWM`): heap, mapped files and shared
memory alike. What Triton holds does not depend on the CT at all; it is reported beside.
"""

from __future__ import annotations

from typing import Any

from atlasloop.client import AttentionClient
from bench.inputs import describe, full_size_ct
from bench.measurement import GIB, machine, peak_bytes, report, say
from bench.serving import serving

SHORT, LONG = 200, 800
CASE_ID = "bench_0"


def main() -> None:
    described = machine("numpy", "numba", "grpcio")
    short, long = _score(SHORT), _score(LONG)
    report(
        "memory",
        slices_ratio=round(long["service_gib"] / short["service_gib"], 3),
        slices={str(SHORT): short, str(LONG): long},
        machine=described,
    )


def _score(slices: int) -> dict[str, Any]:
    ct = full_size_ct(slices)
    input_described = describe(ct)
    with serving() as stack:
        stack.store.write_ct(CASE_ID, ct)
        del ct
        idle = peak_bytes(stack.service_pids())
        say(f"scoring {slices} slices")
        with AttentionClient(stack.address) as client:
            result = client.score_case(CASE_ID)
        return {
            "service_gib": round(peak_bytes(stack.service_pids()) / GIB, 4),
            "service_before_gib": round(idle / GIB, 4),
            "triton_gib": round(peak_bytes(stack.triton_pids()) / GIB, 3),
            "seconds": round(result.timing.total_s, 2),
            "windows": result.timing.windows,
            "windows_air": result.timing.windows_air,
            "input": input_described,
        }


if __name__ == "__main__":
    main()
