"""Shards of a run, several at a time, as tasks that Prefect shows."""

# No `from __future__ import annotations` here: see `atlas_flows.scoring.flow`.

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, cast

from prefect import Task
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import opaque, unmapped

SHARD_CASES = 16
"""Most cases in one shard. A shard is what Prefect sees as one task (about 4 ms each): large enough
that thousands of cases stay hundreds of tasks, small enough that slots do not idle at the end."""


def shards(cases: Sequence[str], in_flight: int) -> list[tuple[str, ...]]:
    """`cases` in runs of at most `SHARD_CASES`, at least four per slot where there are enough."""
    size = max(1, min(SHARD_CASES, math.ceil(len(cases) / (4 * in_flight))))
    return [tuple(cases[start : start + size]) for start in range(0, len(cases), size)]


ResultT = TypeVar("ResultT")


class Stoppable(Protocol):
    """What the shards of one run share; once `stop` is set, none begins another case."""

    @property
    def stop(self) -> threading.Event: ...


def run_shards(
    task: Task[..., list[ResultT]],
    shards: Mapping[str, Sequence[object]],
    run: Stoppable,
    in_flight: int,
    on_abort: Callable[[], None] = lambda: None,
) -> list[ResultT]:
    """What `task` returns for every shard, in their order.

    Args:
        shards: name of the task's parameter → a value per shard.
        run: the task's parameter of this name.
        in_flight: shards at once.
        on_abort: ends what is under way, or its threads would be awaited.

    Raises:
        BaseException: whatever a shard raised, or whatever interrupts; `run` is stopped then.
    """
    # A runner of its own, because the number of slots is a parameter of the run.
    slots: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=in_flight)
    with slots as runner:
        try:
            futures = runner.map(task, {**shards, "run": unmapped(opaque(run))})
            # Prefect's types call these futures; they are what the tasks returned.
            results = cast(list[list[ResultT]], futures.result())
        except BaseException:
            run.stop.set()
            on_abort()
            raise
    return [one for shard in results for one in shard]
