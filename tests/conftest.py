"""Fixtures shared by every test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from real_data import real_data

pytest_plugins = [
    "orthanc",
    "postgres",
    "triton_server",
    "stack",
    "host_device",
    "review_server",
    "nninteractive_server",
    "browser",
]

# Tests judge by a handful of cases; the one that is about too few says so itself.
os.environ.setdefault("ATLASLOOP_PROMOTION_MIN_CASES", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    """See `tests/attack/test_kills.py`."""
    group = parser.getgroup("attack", "how much the attacks try")
    group.addoption("--kills", type=int, default=1, help="random kills of each work")
    group.addoption("--kill-seed", default="atlas", help="which random moments")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real CT volumes; skips where it is missing.

    Set ATLASLOOP_DATA to use another folder.
    """
    folder = real_data()
    if not folder.is_dir():
        pytest.skip(f"real CT volumes are missing (no folder {folder.name}; set ATLASLOOP_DATA)")
    return folder
