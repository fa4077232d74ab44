"""Splits the cases of a run into shards, and runs them side by side as tasks that Prefect shows."""

# No `from __future__ import annotations` here: see `atlas_flows.scoring.flow`.

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, cast

from prefect import Task, runtime
from prefect.client.schemas.objects import State
from prefect.context import TagsContext
from prefect.futures import PrefectFuture, as_completed
from prefect.states import Cancelled
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import opaque, unmapped

SHARD_CASES = 16
"""Most cases in one shard. Prefect sees a shard as one task (about 4 ms each): large enough that
thousands of cases become hundreds of tasks, small enough that no worker idles for long at the end.
"""


def split_into_shards(cases: Sequence[str], in_flight: int) -> list[tuple[str, ...]]:
    """Consecutive `cases` in shards of at most `SHARD_CASES`; where there are enough, at least
    four shards for each of the `in_flight` workers."""
    size = max(1, min(SHARD_CASES, math.ceil(len(cases) / (4 * in_flight))))
    return [tuple(cases[start : start + size]) for start in range(0, len(cases), size)]


def name_shards_by(parameter: str) -> Callable[[], str]:
    """Names a task run after the first case of its shard, the argument of this `parameter`."""

    def name() -> str:
        cases = runtime.task_run.parameters[parameter]
        return cases[0] if len(cases) == 1 else f"{cases[0]} and {len(cases) - 1} more"

    return name


ShardResultT = TypeVar("ShardResultT")


class Stoppable(Protocol):
    """What the shards of one run share; once `stop` is set, none of them begins another case."""

    @property
    def stop(self) -> threading.Event: ...


def shard_state(
    results: list[ShardResultT], left: int
) -> list[ShardResultT] | State[list[ShardResultT]]:
    """What the task of a shard returns: a shard with `left` cases that were not worked on, because
    the run was stopped, counts as cancelled; `run_shards` has the results all the same."""
    if not left:
        return results
    return Cancelled(message=f"the run ended before {left} of its cases", data=results)


def run_shards(
    task: Task[..., list[ShardResultT] | State[list[ShardResultT]]],
    shards: Mapping[str, Sequence[object]],
    run: Stoppable,
    in_flight: int,
    on_abort: Callable[[], None] = lambda: None,
) -> list[ShardResultT]:
    """Run `task` on every shard and return all results, in the order of the shards.

    Args:
        shards: name of the task's parameter → one value per shard.
        run: the task's parameter of this name.
        in_flight: number of shards that run at once.
        on_abort: interrupts calls that are under way; without it their threads would be waited for.

    Raises:
        BaseException: whatever a shard raised, or an interrupt; `run` is stopped first.
    """
    # A task runner of our own, because the number of workers is a parameter of the run.
    pool: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=in_flight)
    # Without the run's tags: for a task that has any, Prefect asks its server for a place before it
    # begins, and for as long as the server is away.
    with TagsContext(current_tags=set()), pool as runner:
        try:
            futures = list(runner.map(task, {**shards, "run": unmapped(opaque(run))}))
            for future in as_completed(futures):  # whatever fails is raised at once
                _result(future)
            results = cast(list[list[ShardResultT]], [_result(future) for future in futures])
        except BaseException:
            run.stop.set()
            on_abort()
            raise
    return [one for shard in results for one in shard]


def _result(future: PrefectFuture[Any]) -> Any:
    """What the task of a shard returned, also where that was `Cancelled`.

    Raises:
        BaseException: what it raised.
    """
    future.wait()
    if future.state.is_cancelled():
        result = future.result(raise_on_failure=False)
        if not isinstance(result, BaseException):  # somebody else cancelled it
            return result
    return future.result()
