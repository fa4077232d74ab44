"""What a stack goes through in `check_compose`: killed containers, an upgrade, the way back."""

from __future__ import annotations

import base64
import json
import os
import signal
import time
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from compose_stack import (
    HEALTHY_WITHIN_S,
    PREFECT,
    THIS,
    CheckFailed,
    Stack,
    require,
    run,
    say,
)

CASES = 3
"""Scored while a container is killed."""

POLL_S = 0.5
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
BEGUN = ("RUNNING", *ENDED)
RUN_WITHIN_S = 600.0


def check_kills(stack: Stack) -> None:
    """Each container is killed once while a run scores cases; every case is scored once."""
    victims = [name for name, told in stack.containers().items() if told["State"]["Running"]]
    ranked = len(stack.ranking())
    for number, victim in enumerate(victims):
        stack.phantoms(f"kill-{victim}", CASES, seed=100 + number)
        ranked += CASES
        flow_run = start_scoring(stack)
        wait(lambda run=flow_run: state_of(stack, run) in BEGUN, f"a run for {victim}")
        told = stack.containers()[victim]
        kill(told)
        seconds = until_healthy(stack, victim, told["State"]["StartedAt"])
        ended = end_of(stack, flow_run)
        if ended != "COMPLETED":
            stack.inside("flows", "prefect", "deployment", "run", "score/score", "--watch")
        found = stack.ranking()
        require(len({case for case, _ in found}) == len(found) == ranked, f"{victim}: {found}")
        how = (
            "the run went on" if ended == "COMPLETED" else f"the run {ended}, the next one ended it"
        )
        say(f"killed {victim:16} healthy after {seconds:4.0f} s; {how}")


def kill(told: Mapping[str, Any]) -> None:
    """SIGKILL to its first process, as the kernel does: its policy starts it again."""
    try:
        os.kill(told["State"]["Pid"], signal.SIGKILL)
    except PermissionError:  # not root: the engine kills, and then does not start it again
        run(["docker", "kill", told["Id"]])
        run(["docker", "start", told["Id"]])


def until_healthy(stack: Stack, name: str, started: str) -> float:
    """Seconds until the engine has started it again, later than `started`, and it is healthy."""
    began = time.monotonic()

    def again() -> bool:
        state = stack.containers()[name]["State"]
        up = state["Running"] and state["Health"]["Status"] == "healthy"
        return bool(up and state["StartedAt"] != started)

    wait(again, f"{name} after it was killed", HEALTHY_WITHIN_S)
    return time.monotonic() - began


def start_scoring(stack: Stack) -> str:
    """Id of a run of the deployment `score`."""
    (found,) = _prefect(
        stack, "/deployments/filter", {"deployments": {"name": {"any_": ["score"]}}}
    )
    return str(_prefect(stack, f"/deployments/{found['id']}/create_flow_run", {})["id"])


def state_of(stack: Stack, flow_run: str) -> str:
    """Type of the run's state; "AWAY" while Prefect does not answer."""
    with suppress(OSError):
        wanted = {"flow_runs": {"id": {"any_": [flow_run]}}}
        return str(_prefect(stack, "/flow_runs/filter", wanted)[0]["state_type"])
    return "AWAY"


def end_of(stack: Stack, flow_run: str) -> str:
    """How it ended; RUNNING if nothing has happened for long."""
    with suppress(CheckFailed):
        wait(lambda: state_of(stack, flow_run) in ENDED, "the run", RUN_WITHIN_S)
    return state_of(stack, flow_run)


def wait(true: Any, what: str, within_s: float = RUN_WITHIN_S) -> None:
    """Until `true()`; raises `CheckFailed` after a while."""
    until = time.monotonic() + within_s
    while not true():
        require(time.monotonic() < until, f"waited {within_s:.0f} s for {what}")
        time.sleep(POLL_S)


def _prefect(stack: Stack, path: str, body: object) -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{PREFECT}/api{path}",
        json.dumps(body).encode(),
        {
            "Content-Type": "application/json",
            "Authorization": f"Basic {base64.b64encode(stack.auth.encode()).decode()}",
        },
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        return json.load(answer)


def check_upgrade(stack: Stack) -> None:
    """The release before scores cases; this one goes on with them, and is taken back."""
    before = stack.release
    say(f"$ docker compose up --detach --wait    # the release before: {stack.up():.0f} s")
    stack.phantoms("before", CASES, seed=300)
    say(stack.inside("flows", "atlasloop", "score").strip())
    ranked = _ranked(stack)
    say(stack.inside("flows", "atlasloop", "backup", "/backup/before").strip())

    stack.compose("down")  # a network that another release has otherwise cannot change in use
    stack.release = THIS
    stack.up("postgresql")
    stack.compose("exec", "-T", "postgresql", "bash", "/docker-entrypoint-initdb.d/10-databases.sh")
    say(f"$ docker compose up --detach --wait    # this release: {stack.up():.0f} s")
    require(_same(_ranked(stack), ranked), f"after the upgrade: {_ranked(stack)}, not {ranked}")
    say("the same ranking after the upgrade")
    stack.phantoms("after", CASES, seed=301)
    say(stack.inside("flows", "atlasloop", "score").strip())
    require(len(_ranked(stack)) == 2 * CASES, f"{_ranked(stack)}")
    say(f"{len(_ranked(stack))} cases are ranked, those of both releases")

    stack.compose("down")
    stack.release = before
    stack.up("postgresql")
    for statement in (
        "ALTER DATABASE atlasloop RENAME TO atlasloop_newer",
        "CREATE DATABASE atlasloop OWNER atlasloop",
        "ALTER DATABASE prefect RENAME TO prefect_newer",
        "CREATE DATABASE prefect OWNER prefect",
    ):
        psql = ("psql", "--username=postgres", "--quiet", "--command", statement)
        stack.compose("exec", "-T", "postgresql", *psql)
    say(f"$ docker compose up --detach --wait    # back: {stack.up():.0f} s")
    say(stack.inside("flows", "atlasloop", "restore", "/backup/before").strip())
    require(_same(_ranked(stack), ranked), f"after the way back: {_ranked(stack)}")
    stack.phantoms("again", CASES, seed=302)
    say(stack.inside("flows", "atlasloop", "score").strip())
    require(len(_ranked(stack)) == 2 * CASES, f"{_ranked(stack)}")
    say("back on the release before, with its catalog, it scores on")


def _ranked(stack: Stack) -> list[tuple[str, float]]:
    """By size: scores of an earlier release do not say by what a later one sorts."""
    return stack.ranking("--by", "size")


def _same(found: list[tuple[str, float]], wanted: list[tuple[str, float]]) -> bool:
    return found[: len(wanted)] == wanted
