"""`atlasloop loop-demo --quick`: both arms through the whole stack, and interrupted in between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.stack, pytest.mark.long]


def test_both_arms_begin_alike_and_every_figure_is_in_the_last_line(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "atlas_flows.cli", "--home", str(tmp_path / "home"), "loop-demo",
        "--quick", "--output", str(tmp_path / "out"),
    ]  # fmt: skip
    done = subprocess.run(
        command, env=dict(os.environ), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    arms = last["arms"]
    assert set(arms) == {"disagreement", "random"}
    assert arms["disagreement"]["iterations"][0] == arms["random"]["iterations"][0]
    for arm in arms.values():
        assert [turn["revised"] + turn["confirmed"] for turn in arm["iterations"]] == [0, 1, 1]
        assert all(turn["minutes"] > 0 for turn in arm["iterations"][1:])
        assert len(arm["assembled"]) == 3
    page = (tmp_path / "out" / "report.html").read_text()
    assert 'href="random.html"' in page
    again = subprocess.run(command, capture_output=True, text=True, check=True)  # nothing is left
    assert json.loads(again.stdout.splitlines()[-1])["arms"] == arms
