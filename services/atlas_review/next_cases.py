"""The next case for many who ask at once: whoever comes while one transaction runs shares the
next one. Alone, nobody waits for company."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

import anyio
from atlas_core.review import Annotator, RevisionQueue, Task, TaskFilter

MOST_AT_ONCE: Final = 64


@dataclass(frozen=True)
class _Ask:
    annotator: Annotator
    wanted: TaskFilter
    answer: asyncio.Future[Task | None]


class NextCases:
    """Asks the queue on behalf of all requests of one process. Belongs to one event loop."""

    def __init__(self, queue: RevisionQueue) -> None:
        self._queue = queue
        self._waiting: list[_Ask] = []
        self._asking: asyncio.Task[None] | None = None
        self._thread = anyio.CapacityLimiter(1)

    async def take(self, annotator: Annotator, wanted: TaskFilter) -> Task | None:
        """See `RevisionQueue.next`."""
        ask = _Ask(annotator, wanted, asyncio.get_running_loop().create_future())
        self._waiting.append(ask)
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask_all())
        return await ask.answer

    async def _ask_all(self) -> None:
        while batch := self._batch():
            try:
                tasks = await anyio.to_thread.run_sync(
                    self._queue.next_for,
                    [(ask.annotator, ask.wanted) for ask in batch],
                    limiter=self._thread,
                )
            except Exception as error:
                for ask in batch:
                    if not ask.answer.done():
                        ask.answer.set_exception(error)
            else:
                for ask, task in zip(batch, tasks, strict=True):
                    # Who has gone away meanwhile keeps the case until the lease ends.
                    if not ask.answer.done():
                        ask.answer.set_result(task)
        self._asking = None

    def _batch(self) -> list[_Ask]:
        """Those who wait, each once: a second question of one annotator waits for the first."""
        first: dict[str, _Ask] = {}
        for ask in self._waiting:
            if len(first) < MOST_AT_ONCE:
                first.setdefault(ask.annotator.name, ask)
        batch = list(first.values())
        self._waiting = [ask for ask in self._waiting if ask not in batch]
        return batch
