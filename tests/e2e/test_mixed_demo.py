"""`make mixed-demo` from end to end: its last line says what became of every member."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from atlas_embedded import processes
from atlas_embedded.settings import EmbeddedSettings
from atlas_flows.mixed_demo import GRAPH_ORGANS, NNUNETS

pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")
pytestmark = [pytest.mark.stack, pytest.mark.long]


def test_members_of_four_kinds_rank_learn_and_are_promoted(tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = subprocess.run(
        [sys.executable, "-m", "atlas_flows.mixed_demo"],
        env={**os.environ, "ATLASLOOP_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    before = {**dict.fromkeys(NNUNETS.values(), 0), "monai": 1, "graph": 0}
    assert told["members"] == before
    assert told["members_now"] == {
        name: version + (name != "graph") for name, version in before.items()
    }
    assert [one["cases"] for one in told["ranked"]] == [6, 6]
    voices = told["ranked"][0]["voices"]
    assert {voices[organ] for organ in GRAPH_ORGANS} == {4}
    assert voices["stomach"] == 3  # the graph has no say in it
    learnt = told["finetuned"]
    assert sorted(learnt) == ["monai@2", "nnunet_fine@1", "nnunet_thick@1"]
    assert all(one["promoted"] for one in learnt.values())
    # The MONAI network has learnt for a minute only.
    assert all(one["dice"] > 0.3 for name, one in learnt.items() if name != "monai@2")
    assert "nobody can train model graph@0" in told["refused"].pop("models finetune graph@0")
    assert not told["refused"]
    assert not list(processes.marked(EmbeddedSettings(home=home / "mixed-demo").stack_id))
