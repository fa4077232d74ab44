"""Leasing the next case for many callers at once: requests that arrive while one transaction runs
share the following one. A request on its own is not delayed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

import anyio
from atlas_core.review import Annotator, RevisionQueue, Task, TaskFilter

MAX_BATCH: Final = 64


@dataclass(frozen=True)
class _LeaseRequest:
    annotator: Annotator
    wanted: TaskFilter
    answer: asyncio.Future[Task | None]


class NextCases:
    """Asks the queue on behalf of all requests of one process. It belongs to one event loop."""

    def __init__(self, queue: RevisionQueue) -> None:
        self._queue = queue
        self._pending: list[_LeaseRequest] = []
        self._worker: asyncio.Task[None] | None = None
        self._thread = anyio.CapacityLimiter(1)

    async def take(self, annotator: Annotator, wanted: TaskFilter) -> Task | None:
        """See `RevisionQueue.next`."""
        request = _LeaseRequest(annotator, wanted, asyncio.get_running_loop().create_future())
        self._pending.append(request)
        if self._worker is None:
            self._worker = asyncio.create_task(self._serve_pending())
        return await request.answer

    async def _serve_pending(self) -> None:
        while batch := self._next_batch():
            try:
                tasks = await anyio.to_thread.run_sync(
                    self._queue.next_for,
                    [(request.annotator, request.wanted) for request in batch],
                    limiter=self._thread,
                )
            except Exception as error:
                for request in batch:
                    if not request.answer.done():
                        request.answer.set_exception(error)
            else:
                for request, task in zip(batch, tasks, strict=True):
                    # A caller who has disconnected keeps the case until the lease expires.
                    if not request.answer.done():
                        request.answer.set_result(task)
        self._worker = None

    def _next_batch(self) -> list[_LeaseRequest]:
        """Pending requests, one per annotator: a second one of the same person waits its turn."""
        first: dict[str, _LeaseRequest] = {}
        for request in self._pending:
            if len(first) < MAX_BATCH:
                first.setdefault(request.annotator.name, request)
        batch = list(first.values())
        self._pending = [request for request in self._pending if request not in batch]
        return batch
