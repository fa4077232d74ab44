"""32 annotators without pause on a queue of 8,448 cases, on PostgreSQL: does the queue hold?

Each takes the next case and hands it in, revised with a label or confirmed, until none is left.
Counted are leases that two had, labels that were acknowledged and are not there, and the time of a
request for the next case as its client sees it, while all others are at work on the same cores.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from atlas_core.catalog import Catalog
from atlas_core.review import LabelVersions, RevisionQueue, TaskFilter
from atlas_core.store import CaseStore
from atlas_review.auth import Accounts, Role
from bench.measurement import machine, report, say

# The server of the tests is the server of the benchmarks.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from ports import free_port
from postgres import running_postgres
from review_load import Work, a_mask, fill_catalog, hammer
from review_server import ReviewPlace, running_review

CASES = 8448
CLIENTS = 32
WORKERS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=CASES, help="in the queue")
    parser.add_argument("--clients", type=int, default=CLIENTS, help="annotators at once")
    wanted = parser.parse_args()
    described = machine("fastapi", "uvicorn", "SQLAlchemy", "psycopg")
    with tempfile.TemporaryDirectory() as name, running_postgres() as server:
        server.execute("CREATE DATABASE review")
        url = server.url("review")
        place = ReviewPlace(Path(name))
        say(f"filling the catalog with {wanted.cases} cases")
        with Catalog.open(url) as catalog:
            fill_catalog(catalog, wanted.cases)
        accounts = Accounts(place.accounts.path)
        tokens = [accounts.add_token(f"c{n:02}", (Role.ANNOTATOR,)) for n in range(wanted.clients)]
        place.store.root.mkdir(parents=True)
        port = free_port()
        with running_review(place, port=port, catalog_url=url, workers=WORKERS):
            say(f"{wanted.clients} clients")
            began = time.perf_counter()
            works = hammer(port, tokens, a_mask(Path(name)))
            elapsed = time.perf_counter() - began
        with Catalog.open(url) as catalog:
            result = _checked(works, wanted.cases, catalog, place.store)
    next_s = [seconds for work in works for seconds in work.next_s]
    report(
        "review",
        **result,
        next_p50_ms=round(float(np.quantile(next_s, 0.5)) * 1000, 1),
        next_p95_ms=round(float(np.quantile(next_s, 0.95)) * 1000, 1),
        next_p99_ms=round(float(np.quantile(next_s, 0.99)) * 1000, 1),
        cases_per_s=round(wanted.cases / elapsed, 1),
        inputs={
            "cases": wanted.cases,
            "clients": wanted.clients,
            "workers": WORKERS,
            "database": "PostgreSQL",
        },
        machine=described,
    )


def _checked(works: list[Work], cases: int, catalog: Catalog, store: CaseStore) -> dict[str, Any]:
    """What went wrong, as numbers that are to be 0."""
    tasks = [number for work in works for number in work.tasks]
    for error in {error for work in works for error in work.errors}:
        say(f"error: {error}")
    versions = LabelVersions(catalog)
    labels = [label for work in works for label in work.labels]
    lost = sum(not _is_there(versions, store, *label) for label in labels)
    counts = RevisionQueue(catalog).counts(TaskFilter())
    return {
        "errors": sum(len(work.errors) for work in works),
        "double_leases": len(tasks) - len(set(tasks)),
        "lost_labels": lost,
        "labels": len(labels),
        "left_over": cases - counts.revised - counts.confirmed,
    }


def _is_there(versions: LabelVersions, store: CaseStore, case_id: str, version_id: str) -> bool:
    version = versions.version(case_id, version_id)
    content = store.path(version.path).read_bytes()
    return version.in_force and hashlib.sha256(content).hexdigest() == version.sha256


if __name__ == "__main__":
    main()
