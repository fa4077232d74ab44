"""A stand-in for the attention service: answers at once, so that all the time is orchestration's.

It writes what the flows look for in the case store, counts how often it predicted each case, and
may hold an answer back.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import grpc
import sqlalchemy as sa
from atlas_core.catalog import Catalog
from atlas_core.catalog import tables as t
from atlas_core.model_spec import ModelRef, ensemble_key
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.records import Dataset, Reading
from atlas_core.store import CaseStore
from atlasloop.attention.v1 import attention_pb2 as pb
from atlasloop.attention.v1 import attention_pb2_grpc as stubs
from ports import free_port

MODEL = ModelRef(name="simulated", version=0, sha256="0" * 64)
ENSEMBLE = ensemble_key([MODEL])
AFFINE = [[2.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 2.0, 0], [0, 0, 0, 1.0]]
ROWS = 2000
THREADS = 64


class SimulatedAttention(stubs.AttentionServiceServicer):
    """Predicts instantly.

    Args:
        held: cases whose answers wait until `release`.
    """

    def __init__(self, store: CaseStore, held: Set[str] = frozenset()) -> None:
        self.predicted: Counter[str] = Counter()
        self.asked = threading.Event()
        self.release = threading.Event()
        self._held = held
        self._store = store
        self._lock = threading.Lock()

    def GetInfo(
        self, request: pb.GetInfoRequest, context: grpc.ServicerContext
    ) -> pb.GetInfoResponse:
        model = pb.Model(
            name=MODEL.name, version=MODEL.version, sha256=MODEL.sha256,
            architecture="none", organs=ABDOMEN_ATLAS.names, spacing_mm=[3, 3, 3], patch=[8, 8, 8],
        )  # fmt: skip
        return pb.GetInfoResponse(
            models=[model], organs=ABDOMEN_ATLAS.names, labels=ABDOMEN_ATLAS.labels,
            organ_scheme=ABDOMEN_ATLAS.name, organ_scheme_sha256=ABDOMEN_ATLAS.digest,
        )  # fmt: skip

    def ScoreCase(
        self, request: pb.ScoreCaseRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ScoreCaseResponse]:
        case_id = request.case_id
        if case_id in self._held:
            self.asked.set()
            self.release.wait()
        number = self._store.result_number(case_id, Reading.PAPER, ENSEMBLE)
        found = number > request.newer_than
        if not found:
            number += 1
            with self._lock:
                self.predicted[case_id] += 1
            at = (case_id, Reading.PAPER, ENSEMBLE)
            path = self._store.pseudo_label_path(*at, number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(case_id.encode())
            self._store.result_path(*at, number).write_text("{}")
        organs = [
            pb.OrganResult(
                organ=organ, attention_voxels=1.0, attention_ml=1.0, pseudo_label_ml=1.0,
                pseudo_label_voxels=1, disagreement=0.5, expected_ml=1.0, voices=1,
            )
            for organ in ABDOMEN_ATLAS.names
        ]  # fmt: skip
        ref = pb.ModelRef(name=MODEL.name, version=MODEL.version, sha256=MODEL.sha256)
        yield pb.ScoreCaseResponse(
            result=pb.CaseResult(
                case_id=case_id, ensemble=ENSEMBLE, reading=request.reading, organs=organs,
                timing=pb.Timing(total_s=1.0), already_scored=found, models=[ref], number=number,
            )
        )  # fmt: skip


@contextmanager
def serve_simulated(servicer: SimulatedAttention) -> Iterator[str]:
    """Its address."""
    server = grpc.server(ThreadPoolExecutor(THREADS))
    stubs.add_AttentionServiceServicer_to_server(servicer, server)
    address = f"127.0.0.1:{free_port()}"
    assert server.add_insecure_port(address)
    server.start()
    try:
        yield address
    finally:
        servicer.release.set()
        server.stop(None)


def add_cases(catalog: Catalog, dataset: str, count: int) -> tuple[str, ...]:
    """`count` cases on record, of which there are no files; their ids."""
    catalog.add_dataset(Dataset(name=dataset, licence="CC0-1.0"))
    now = datetime.now(UTC)
    ids = tuple(f"{dataset}_{number:06}" for number in range(count))
    rows: list[dict[str, Any]] = [
        {
            "id": case_id, "dataset": dataset, "shape": [64, 64, 64], "source": "",
            "content_sha256": hashlib.sha256(case_id.encode()).hexdigest(),
            "affine": AFFINE, "imported_at": now,
        }
        for case_id in ids
    ]  # fmt: skip
    with catalog.transaction(write=True) as connection:
        for start in range(0, count, ROWS):
            connection.execute(sa.insert(t.cases), rows[start : start + ROWS])
        connection.execute(sa.text("ANALYZE"))  # as a running database does by itself
    return ids
