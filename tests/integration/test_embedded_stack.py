"""The embedded stack on the real programs: started, broken in every way, mended, and gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from stack import Stack, open_stack


@pytest.fixture(scope="module")
def triton(stack_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with open_stack(tmp_path_factory.mktemp("t") / "home", stack_models, ("triton",)) as opened:
        yield opened


def test_status(triton: Stack) -> None:
    assert triton.status()["triton"].state == "healthy"
    triton.kill("triton")
    assert triton.status()["triton"].state == "died"
    triton.restart()
    assert triton.status()["triton"].state == "healthy"
