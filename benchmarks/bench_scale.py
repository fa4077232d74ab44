"""Scoring of 8,448 and 100,000 cases: what does orchestration cost, how long would a site take?

The first figure is measured: the real flow `score` on a real Prefect server, a real PostgreSQL and
a real gRPC socket, against a stand-in for the attention service that answers at once, so that all
of the time is orchestration's. `--shards` above 1 fans out over runs of their own, as in a work
pool.

The second is simulated, from what was measured here (orchestration; the attention service's own
work on a CT of 512 × 512 × 200 whose models answer at once) and what `--models-s` and
`--revision-min` say: seconds of a GPU and minutes of an annotator per case.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from atlas_attention.scoring import attend
from atlas_core.catalog import Catalog
from atlas_core.imaging import open_slabs
from atlas_core.model_spec import ModelSpec
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.records import Reading
from atlas_core.store import CaseStore
from atlas_models.serving import read_spec
from bench.inputs import full_size_ct, put_into_store
from bench.measurement import in_fresh_process, machine, report, say
from numpy.typing import NDArray
from simulated.loop_simulation import ServiceTimes, Site, simulate

# The server of the tests is the server of the benchmarks.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from postgres import PostgresServer, running_postgres
from simulated_attention import SimulatedAttention, add_cases, serve_simulated
from stack import Stack, open_stack

REPOSITORY = Path(__file__).resolve().parents[1]

SIZES = (8448, 100_000)
SLICES = 200
GOAL_MS = 20.0
NODES = (1, 4, 10)

MODELS_S = 0.6
"""`make bench-gpu-models` on an NVIDIA H200: the paper's three networks over such a CT."""

REVISION_MIN = 15.0
"""Assumed, not measured: of one case of the list's top."""

ANNOTATORS = 5
WORKING_SHARE = 8 / 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, nargs="*", default=SIZES, help="measured with so many")
    parser.add_argument("--in-flight", type=int, default=4)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--models-s", type=float, default=MODELS_S)
    parser.add_argument("--revision-min", type=float, default=REVISION_MIN)
    parser.add_argument("--annotators", type=int, default=ANNOTATORS)
    wanted = parser.parse_args()
    described = machine("prefect", "SQLAlchemy", "psycopg", "simpy")
    measured = {}
    with tempfile.TemporaryDirectory() as name, running_postgres() as server:
        parts = ("prefect",) if wanted.shards == 1 else ("prefect", "flows")
        os.environ["ATLASLOOP_SCORE_PARAMETERS"] = json.dumps({"shards": wanted.shards})
        for label, cases in zip(SIZES, wanted.cases, strict=False):
            folder = Path(name) / str(label)
            say(f"{cases} cases")
            measured[label] = _ms_per_case(
                server, folder, parts, cases, wanted.in_flight, wanted.shards
            )
    say("the attention service's own work")
    attention_s = attention_core_seconds()
    say("simulation")
    times = ServiceTimes(
        attention_s, wanted.models_s, max(measured.values()) / 1000, wanted.revision_min * 60
    )
    hours: dict[str, dict[str, dict[str, Any]]] = {}
    for cases in SIZES:
        for nodes in NODES:
            site = Site(nodes, annotators=wanted.annotators * WORKING_SHARE)
            made = simulate(cases, site, times)
            hours.setdefault(str(cases), {})[f"{nodes} nodes"] = {
                "scored_hours": round(made.scored_hours, 2),
                "hours": round(made.hours, 1),
                "bottleneck": made.bottleneck,
                "busy": {stage: round(share, 3) for stage, share in made.busy.items()},
            }
    report(
        "scale",
        **{f"ms_per_case_{label}": round(ms, 2) for label, ms in measured.items()},
        goal_ms=GOAL_MS,
        attention_core_s_per_case=round(attention_s, 2),
        simulated_hours=hours,
        inputs={
            "cases": list(wanted.cases), "in_flight": wanted.in_flight, "shards": wanted.shards,
            "models_s": wanted.models_s, "revision_min": wanted.revision_min,
            "annotators": wanted.annotators, "working_share": round(WORKING_SHARE, 3),
            "database": "PostgreSQL",
        },
        machine=described,
    )  # fmt: skip


def _ms_per_case(
    server: PostgresServer,
    folder: Path,
    parts: tuple[Any, ...],
    cases: int,
    in_flight: int,
    shards: int,
) -> float:
    folder.mkdir()
    database = f"scale{folder.name}"
    server.execute(f"CREATE DATABASE {database}")
    url = server.url(database)
    store = CaseStore(folder / "store")
    store.root.mkdir()
    # The calls that orchestration does not make are left out.
    with serve_simulated(SimulatedAttention(store)) as address:  # type: ignore[abstract]
        os.environ |= {
            "ATLASLOOP_CATALOG_URL": url,
            "ATLASLOOP_STORE": str(store.root),
            "ATLASLOOP_ATTENTION_ADDRESS": address,
        }
        with Catalog.open(url) as catalog:
            add_cases(catalog, "Many", cases)
        with open_stack(folder / "home", folder / "models", parts) as stack:
            seconds, _ = in_fresh_process(run_score, _variables(stack), in_flight, shards)
    return float(seconds) / cases * 1000


def _variables(stack: Stack) -> dict[str, str]:
    return dict(stack.settings.environment())


def run_score(variables: dict[str, str], in_flight: int, shards: int) -> float:
    """Seconds of the flow over all cases."""
    os.environ |= variables
    from atlas_flows.settings import Places

    Places.read().enter_prefect(quiet=True)
    from atlas_flows.scoring.flow import score

    began = time.perf_counter()
    score(in_flight=in_flight, shards=shards)
    return time.perf_counter() - began


class InstantModels:
    """Models that have their answers ready: a ramp, of which fusion can skip nothing."""

    def __init__(self, specs: tuple[ModelSpec, ...]) -> None:
        self._answers = {}
        for spec in specs:
            z, y, x = reversed(spec.patch)
            ramp = np.linspace(0, 255, z * y * x).astype(np.uint8).reshape(z, y, x)
            self._answers[spec.ref] = np.stack([ramp] * len(spec.organs))

    def submit(self, spec: ModelSpec, window: NDArray[np.float32]) -> Future[NDArray[np.uint8]]:
        answer: Future[NDArray[np.uint8]] = Future()
        answer.set_result(self._answers[spec.ref])
        return answer


def attention_core_seconds() -> float:
    """Processor seconds of the service for one CT, beside those of the models."""
    demo = REPOSITORY / "models" / "demo"
    specs = tuple(read_spec(path.parent) for path in sorted(demo.glob("*/model.json")))
    with tempfile.TemporaryDirectory() as name:
        store = CaseStore(Path(name))
        path = put_into_store(store, "scale", full_size_ct(SLICES))
        seconds = 0.0
        for _ in range(2):  # kernels are compiled in the first
            began = time.process_time()
            with open_slabs(path) as ct:
                run = attend(ct, specs, InstantModels(specs), Reading.PAPER, scheme=ABDOMEN_ATLAS)
                for _slab in run:
                    pass
            seconds = time.process_time() - began
    return seconds


if __name__ == "__main__":
    main()
