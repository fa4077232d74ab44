"""A load of annotators: next case, hand in, next case, over real HTTP, as fast as possible.

Used by the concurrency test and by `benchmarks/bench_review.py`.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import sqlalchemy as sa
from atlas_core.catalog import Catalog
from atlas_core.catalog import tables as t
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import write_volume
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.records import Dataset
from atlas_core.review import Portion, RevisionQueue

SHAPE = (24, 20, 16)
GEOMETRY = VolumeGeometry.from_array(SHAPE, np.diag([2.0, 2.0, 3.0, 1.0]))
ORGAN = "liver"
ENSEMBLE = "unet@0-cccccccc"
THREADS_PER_PROCESS = 16
BOUNDARY = "atlasloop"


@dataclass
class Work:
    """What one client did.

    Attributes:
        next_s: seconds that each request for the next case took.
        tasks: tasks that it was given, in order.
        labels: case and id of every label version that was acknowledged.
        errors: responses without success.
    """

    next_s: list[float] = field(default_factory=list)
    tasks: list[int] = field(default_factory=list)
    labels: list[tuple[str, str]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def fill_catalog(catalog: Catalog, cases: int, *, queue: bool = True) -> None:
    """`cases` scored cases without files, and a task for each if they are queued."""
    now = datetime.now(UTC)
    catalog.add_dataset(Dataset(name="Many", title="Many", licence="CC0-1.0"))
    ids = [f"Many_{number:05}" for number in range(cases)]
    affine = [list(row) for row in GEOMETRY.affine]
    with catalog.transaction(write=True) as connection:
        connection.execute(
            sa.insert(t.cases),
            [
                {
                    "id": case_id,
                    "dataset": "Many",
                    "content_sha256": f"{number:064x}",
                    "shape": list(SHAPE),
                    "affine": affine,
                    "source": "",
                    "imported_at": now,
                }
                for number, case_id in enumerate(ids)
            ],
        )
        connection.execute(sa.insert(t.ensembles), [{"key": ENSEMBLE}])
        score = {"reading": "paper", "ensemble": ENSEMBLE}
        connection.execute(
            sa.insert(t.scores),
            [score | {"case_id": case_id, "seconds": 1.0, "created_at": now} for case_id in ids],
        )
        connection.execute(
            sa.insert(t.organ_scores),
            [
                score
                | {
                    "case_id": case_id,
                    "organ": organ,
                    "attention_voxels": 10.0 * (cases - number),
                    "attention_ml": 1.0 * (cases - number),
                    "pseudo_label_ml": 1.0,
                    "disagreement": (cases - number) / (cases + 1),
                    "expected_ml": 1.0,
                }
                for number, case_id in enumerate(ids)
                for organ in ABDOMEN_ATLAS.names
            ],
        )
        connection.execute(sa.text("ANALYZE"))  # as a database in operation does by itself
    if queue:
        RevisionQueue(catalog).open_tasks(Portion(share=1.0), "manager")


def a_mask(folder: Path) -> bytes:
    """A small mask on the grid of all cases."""
    voxels = np.zeros(SHAPE, np.uint8, order="F")
    voxels[4:12, 4:12, 4:12] = 1
    path = folder / "mask.nii.gz"
    write_volume(path, voxels, GEOMETRY)
    return path.read_bytes()


def hammer(port: int, tokens: Sequence[str], mask: bytes, *, label_every: int = 2) -> list[Work]:
    """One client for each of `tokens`, sixteen per process, until the queue is empty.

    Args:
        label_every: every n-th case is revised with a label, the others are confirmed.
    """
    groups = [
        tokens[start : start + THREADS_PER_PROCESS]
        for start in range(0, len(tokens), THREADS_PER_PROCESS)
    ]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(groups), mp_context=context) as pool:
        runs = [pool.submit(_group, port, group, mask, label_every) for group in groups]
        return [work for run in runs for work in run.result()]


def _group(port: int, tokens: Sequence[str], mask: bytes, label_every: int) -> list[Work]:
    with ThreadPoolExecutor(len(tokens)) as pool:
        return list(pool.map(lambda token: _client(port, token, mask, label_every), tokens))


class _Connection:
    """HTTP over one connection, and only as much of it as the service needs: `http.client` would
    take too much of the two cores that are being measured."""

    def __init__(self, port: int, token: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._head = f"Host: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n"

    def post(self, path: str, content: bytes, kind: str) -> tuple[int, bytes]:
        """Status and content of the response."""
        head = (
            f"POST {path} HTTP/1.1\r\n{self._head}"
            f"Content-Type: {kind}\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        self._socket.sendall(head.encode() + content)
        received = b""
        while (end := received.find(b"\r\n\r\n")) < 0:
            received += self._more()
        length = re.search(rb"\r\ncontent-length: (\d+)", received[:end], re.IGNORECASE)
        last = end + 4 + (int(length[1]) if length else 0)
        while len(received) < last:
            received += self._more()
        return int(received[9:12]), received[end + 4 : last]

    def _more(self) -> bytes:
        piece = self._socket.recv(1 << 16)
        if not piece:
            raise ConnectionError("the service has closed the connection")
        return piece

    def close(self) -> None:
        self._socket.close()


def _client(port: int, token: str, mask: bytes, label_every: int) -> Work:
    work = Work()
    connection = _Connection(port, token)
    try:
        while (task := _next(connection, work)) is not None:
            number, case_id = int(task["id"]), str(task["case_id"])  # type: ignore[call-overload]
            work.tasks.append(number)
            if len(work.tasks) % label_every:
                path = f"/api/v1/tasks/{number}/confirm"
                organs = [one["organ"] for one in task["organs"]]  # type: ignore[attr-defined]
                _post(connection, path, {"seconds_spent": 1.0, "visited": organs}, work)
            else:
                _hand_in(connection, work, number, case_id, mask)
    finally:
        connection.close()
    return work


def _next(connection: _Connection, work: Work) -> dict[str, object] | None:
    began = time.perf_counter()
    task = _post(connection, "/api/v1/queue/next", {}, work)
    work.next_s.append(time.perf_counter() - began)
    return task


def _hand_in(connection: _Connection, work: Work, number: int, case_id: str, mask: bytes) -> None:
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="label"; filename="m.nii.gz"\r\n\r\n'
    )
    form = head.encode() + mask + f"\r\n--{BOUNDARY}--\r\n".encode()
    path = f"/api/v1/cases/{case_id}/labels?organ={ORGAN}&base=none&task={number}"
    version = _answer(
        connection.post(path, form, f"multipart/form-data; boundary={BOUNDARY}"), work
    )
    if version is not None:
        work.labels.append((case_id, str(version["id"])))
        body = {"seconds_spent": 1.0, "labels": {ORGAN: version["id"]}}
        _post(connection, f"/api/v1/tasks/{number}/revise", body, work)


def _post(connection: _Connection, path: str, body: object, work: Work) -> dict[str, object] | None:
    return _answer(connection.post(path, json.dumps(body).encode(), "application/json"), work)


def _answer(answer: tuple[int, bytes], work: Work) -> dict[str, object] | None:
    status, content = answer
    if status not in (200, 201, 204):
        work.errors.append(f"{status} {content.decode(errors='replace')[:200]}")
        return None
    found: dict[str, object] | None = json.loads(content) if content else None
    return found
