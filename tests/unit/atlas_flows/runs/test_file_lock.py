"""Locks between processes: they are held, they say who holds them, and they end with the holder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from atlas_core.errors import Conflict
from atlas_embedded import model_trials, stack
from atlas_embedded.settings import EmbeddedSettings
from atlas_flows.demos import exclusive_demo
from atlas_flows.runs import exclusive_run
from atlas_models.serving import CpuServing, TritonRepository

HOLDER = """
import os, sys
from pathlib import Path
from filelock import FileLock
with FileLock(sys.argv[1]):
    Path(sys.argv[1]).write_text(str(os.getpid()))
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_elsewhere(lock: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds `lock` until it is killed."""
    command = [sys.executable, "-c", HOLDER, str(lock)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        try:
            yield holder
        finally:
            holder.kill()


def test_a_run_waits_for_another_and_goes_on_when_that_is_killed(tmp_path: Path) -> None:
    said: list[str] = []
    lock = tmp_path / "home" / "iterate.lock"
    with held_elsewhere(lock) as holder:

        def on_event(line: str) -> None:
            said.append(line)
            holder.kill()

        with exclusive_run(lock, on_event):
            assert holder.wait(timeout=10) == -9
    assert said == ["waiting for another run of the loop"]


def test_a_run_that_is_alone_does_not_wait(tmp_path: Path) -> None:
    for _ in range(2):
        with exclusive_run(tmp_path / "iterate.lock", pytest.fail):
            pass


def test_a_second_demo_is_refused(tmp_path: Path) -> None:
    with (
        held_elsewhere(tmp_path / "demo.lock"),
        pytest.raises(Conflict, match="another demo is running here"),
        exclusive_demo(tmp_path),
    ):
        pass
    with exclusive_demo(tmp_path):
        pass


def test_a_second_promotion_is_refused(tmp_path: Path) -> None:
    repository = TritonRepository(tmp_path, CpuServing())
    with (
        held_elsewhere(tmp_path / ".promotion.lock"),
        pytest.raises(Conflict, match="another promotion or rollback is under way"),
        model_trials.exclusive_change(repository),
    ):
        pass
    with model_trials.exclusive_change(repository):
        pass


def test_up_names_the_process_that_keeps_it_waiting(tmp_path: Path) -> None:
    settings = EmbeddedSettings(home=tmp_path, start_timeout_s=0.1)
    with (
        held_elsewhere(settings.run / "lock") as holder,
        pytest.raises(Conflict, match=f"process {holder.pid}"),
        stack._locked(settings),
    ):
        pass
