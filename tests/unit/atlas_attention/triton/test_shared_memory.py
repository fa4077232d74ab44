"""Regions of shared memory belong to a living process, or are swept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from atlas_attention.triton.shared_memory import SHARED_MEMORY, SharedRegion, sweep
from atlas_core.errors import ConfigurationError

OWNER = """
import sys, time
from atlas_attention.triton.shared_memory import SharedRegion
region = SharedRegion(4096)
print(region.name, flush=True)
time.sleep(600)
"""


def test_a_region_is_memory_that_another_mapping_sees() -> None:
    region = SharedRegion(64)
    try:
        region.view(np.float32, (2, 3))[:] = [[1, 2, 3], [4, 5, 6]]
        seen = np.fromfile(SHARED_MEMORY / region.name, np.float32, 6)
        assert seen.tolist() == [1, 2, 3, 4, 5, 6]
    finally:
        region.close()
    assert not (SHARED_MEMORY / region.name).exists()


def test_closing_twice_or_with_a_view_alive_is_harmless() -> None:
    region = SharedRegion(8)
    view = region.view(np.uint8, (8,))
    region.close()
    region.close()
    assert view.sum() == 0
    assert not (SHARED_MEMORY / region.name).exists()


def test_the_name_carries_the_process() -> None:
    region = SharedRegion(8)
    try:
        assert region.name.split("-")[1] == str(os.getpid())
    finally:
        region.close()


def test_sweep_takes_regions_of_the_dead_only() -> None:
    mine = SharedRegion(8)
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    theirs = owner.stdout.readline().strip()
    try:
        sweep()
        assert (SHARED_MEMORY / theirs).exists(), "its owner lives"
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        assert theirs in sweep()
        assert not (SHARED_MEMORY / theirs).exists()
        assert (SHARED_MEMORY / mine.name).exists()
    finally:
        owner.kill()
        owner.wait()
        owner.stdout.close()
        mine.close()


def test_too_little_shared_memory_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="shm-size"):
        SharedRegion(1 << 60, tmp_path)
    assert list(tmp_path.iterdir()) == []
