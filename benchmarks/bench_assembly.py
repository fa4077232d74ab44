"""Ranking, queueing and assembly of thousands of cases: what does orchestration cost per case?

Tiny cases on a real PostgreSQL, through the real flow `assemble` on a real Prefect server. The work
proper is measured by itself, one `assemble_case` after the other without catalog and Prefect; what
the flow takes beyond that, the ranking, and the opening of tasks for its top, is orchestration.
Also counted: a second run that finds nothing to do, and the most memory that the process of the
flow had.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from atlas_core.assembly import assemble_case
from atlas_core.catalog import Catalog
from atlas_core.catalog import tables as t
from atlas_core.imaging import write_volume
from atlas_core.model_spec import ensemble_key
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.records import Dataset, LabelSource, Reading
from atlas_core.review import TOP_SHARE, Portion, RevisionQueue
from atlas_core.store import CaseStore
from atlas_flows.assembly import AssemblyRequest, case_assembly
from bench.measurement import in_fresh_process, machine, report, say

# The server of the tests is the server of the benchmarks.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from labelled_site import GEOMETRY, NNUNET, SHAPE, UNET, all_organs, label_map
from postgres import running_postgres
from stack import open_stack

CASES = 2000
ALONE = 200
"""Cases that are assembled without any orchestration around them."""

GOAL_MS = 50.0
ROWS = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=int(os.environ.get("CASES", CASES)))
    parser.add_argument("--in-flight", type=int, default=1)
    wanted = parser.parse_args()
    described = machine("prefect", "SQLAlchemy", "psycopg")
    with tempfile.TemporaryDirectory() as name, running_postgres() as server:
        home = Path(name) / "home"
        server.execute("CREATE DATABASE assembly")
        url = server.url("assembly")
        with open_stack(home, home / "models", ("prefect",)) as stack:
            os.environ.update(stack.settings.environment())
            os.environ["ATLASLOOP_CATALOG_URL"] = url
            say(f"filling catalog and store with {wanted.cases} cases")
            store = CaseStore(stack.settings.store)
            with Catalog.open(url) as catalog:
                fill(catalog, store, Path(name), wanted.cases)
                ranking_s = _ranking_s(catalog)
                queueing_s = _queueing_s(catalog)
                alone_ms = _alone_ms(catalog, store, min(ALONE, wanted.cases))
            say("the flow")
            # In a process of its own, so that the peak is that of the flow.
            (flow_s, again_s), peak = in_fresh_process(run_twice, wanted.in_flight)
    flow_ms = flow_s / wanted.cases * 1000
    overhead_ms = flow_ms - alone_ms + (ranking_s + queueing_s) / wanted.cases * 1000
    report(
        "assembly",
        overhead_ms_per_case=round(overhead_ms, 2),
        goal_ms=GOAL_MS,
        ranking_ms_per_case=round(ranking_s / wanted.cases * 1000, 3),
        queueing_ms_per_case=round(queueing_s / wanted.cases * 1000, 3),
        flow_ms_per_case=round(flow_ms, 2),
        work_ms_per_case=round(alone_ms, 2),
        nothing_to_do_ms_per_case=round(again_s / wanted.cases * 1000, 3),
        peak_mib=round(peak / 2**20, 1),
        inputs={"cases": wanted.cases, "in_flight": wanted.in_flight, "database": "PostgreSQL"},
        machine=described,
    )


def run_twice(in_flight: int) -> tuple[float, float]:
    """Seconds of the flow over all cases, and of a second run over the same."""
    from atlas_flows.settings import Places

    Places.read().enter_prefect(quiet=True)
    from atlas_flows.assembly.flow import assemble

    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        assemble(in_flight=in_flight)
        seconds.append(time.perf_counter() - began)
    return seconds[0], seconds[1]


def _ranking_s(catalog: Catalog) -> float:
    began = time.perf_counter()
    catalog.ranking(Reading.PAPER)
    return time.perf_counter() - began


def _queueing_s(catalog: Catalog) -> float:
    """Seconds until a revision task is open for each case of the top."""
    began = time.perf_counter()
    opened = RevisionQueue(catalog).open_tasks(Portion(share=TOP_SHARE), "benchmark")
    say(f"{opened.created} tasks")
    return time.perf_counter() - began


def _alone_ms(catalog: Catalog, store: CaseStore, cases: int) -> float:
    """Milliseconds of one `assemble_case`; what it wrote is gone afterwards."""
    ids = [case.id for case in catalog.cases()][:cases]
    request = AssemblyRequest()
    inputs = [made for _, made in case_assembly.inputs_of(request, catalog, store, ids)]
    began = time.perf_counter()
    for made in inputs:
        if isinstance(made, Exception):
            raise made
        assemble_case(store, made)
    elapsed = time.perf_counter() - began
    for case_id in ids:
        shutil.rmtree(store.ct_path(case_id).parent / "assembled")
    return elapsed / cases * 1000


def fill(catalog: Catalog, store: CaseStore, scratch: Path, cases: int) -> None:
    """`cases` scored cases of nine pseudo labels and an original liver; all have equal files."""
    masks = all_organs()
    models = (UNET, NNUNET)
    ensemble = ensemble_key(models)
    write_volume(scratch / "ct.nii.gz", np.full(SHAPE, 40, np.int16, order="F"), GEOMETRY)
    map_sha256 = write_volume(scratch / "map.nii.gz", label_map(masks), GEOMETRY)
    liver_sha256 = write_volume(scratch / "liver.nii.gz", masks["liver"], GEOMETRY)
    catalog.add_dataset(Dataset(name="Many", licence="CC0-1.0"))
    now = datetime.now(UTC)
    rows: dict[sa.Table, list[dict[str, Any]]] = {
        table: [] for table in (t.cases, t.labels, t.scores, t.organ_scores)
    }
    for number in range(cases):
        case_id = f"Many_{number:05}"
        pseudo = store.pseudo_label_path(case_id, Reading.PAPER, ensemble)
        liver = store.label_path(case_id, "liver", LabelSource.ORIGINAL, liver_sha256)
        for name, target in (("ct", store.ct_path(case_id)), ("map", pseudo), ("liver", liver)):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(scratch / f"{name}.nii.gz", target)
        rows[t.cases].append(
            {
                "id": case_id, "dataset": "Many", "shape": list(SHAPE), "source": "",
                "content_sha256": hashlib.sha256(case_id.encode()).hexdigest(),
                "affine": [list(row) for row in GEOMETRY.affine], "imported_at": now,
            }
        )  # fmt: skip
        label = {
            "case_id": case_id, "voxels": 12, "volume_ml": 3.0, "created_at": now, "models": [],
            "annotator": None,
        }  # fmt: skip
        rows[t.labels].append(
            label | {"organ": "liver", "source": "original", "path": store.relative(liver),
                     "value": 1, "sha256": liver_sha256}
        )  # fmt: skip
        score = {"case_id": case_id, "reading": "paper", "ensemble": ensemble}
        rows[t.scores].append(score | {"seconds": 1.0, "created_at": now})
        for organ in ABDOMEN_ATLAS:
            rows[t.labels].append(
                label | {"organ": organ.name, "source": "pseudo", "path": store.relative(pseudo),
                         "value": organ.label, "sha256": map_sha256,
                         "models": [ref.model_dump() for ref in models]}
            )  # fmt: skip
            rows[t.organ_scores].append(
                score | {"organ": organ.name, "attention_voxels": float(number),
                         "attention_ml": float(number), "pseudo_label_ml": 3.0}
            )  # fmt: skip
    with catalog.transaction(write=True) as connection:
        connection.execute(sa.insert(t.ensembles), [{"key": ensemble}])
        refs = [ref.model_dump() | {"ensemble": ensemble} for ref in models]
        connection.execute(sa.insert(t.ensemble_models), refs)
        for table, content in rows.items():
            for start in range(0, len(content), ROWS):
                connection.execute(sa.insert(table), content[start : start + ROWS])
        connection.execute(sa.text("ANALYZE"))  # as a running database does by itself


if __name__ == "__main__":
    main()
