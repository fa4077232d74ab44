"""`atlasloop demo` as a visitor runs it: one command, one page, nothing left running."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import write_volume
from atlas_core.phantoms import PhantomGrid, write_phantoms
from atlas_embedded import processes
from atlas_embedded.settings import EmbeddedSettings

pytestmark = [pytest.mark.stack, pytest.mark.slow]

PATIENCE_S = 300.0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "home"


def _command(home: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "atlas_flows.cli", "--home", str(home), "demo", *arguments]


def _demo(home: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(home, *arguments),
        capture_output=True,
        text=True,
        timeout=600,
        cwd=cwd,
        check=False,
    )


def _left_running(home: Path) -> set[int]:
    stack_id = EmbeddedSettings(home=home / "demo").stack_id
    return {process.pid for process in processes.marked(stack_id)}


def _require_self_contained(page: str) -> None:
    """No resource is fetched: whatever a browser would load is inside the page."""
    sources = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)["']""", page)
    assert sources
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "http://" not in page
    assert "https://" not in page
    assert "@import" not in page
    assert "<script" not in page


def test_phantoms(home: Path, tmp_path: Path) -> None:
    result = _demo(home, tmp_path, "--cases", "2", "--output", "out")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "report: out/report.html"
    page = (tmp_path / "out" / "report.html").read_text()
    _require_self_contained(page)
    assert page.count("data:image/webp;base64,") == 2 * 9
    assert "phantoms, not patients" in page
    ranking = json.loads((tmp_path / "out" / "ranking.json").read_text())
    assert [row["rank"] for row in ranking["ranking"]] == [1, 2]
    apart = [row["disagreement"] for row in ranking["ranking"]]
    assert apart == sorted(apart, reverse=True)
    assert apart[-1] > 0
    rows = list(csv.DictReader((tmp_path / "out" / "ranking.csv").open()))
    assert [row["case"] for row in rows] == [row["case"] for row in ranking["ranking"]]
    assert not _left_running(home)


def test_own_cts_after_phantoms_in_the_same_home(home: Path, tmp_path: Path) -> None:
    cts = tmp_path / "cts"
    write_phantoms(cts, 1, 77, labels="none", grid=PhantomGrid(columns=64, slice_mm=6))
    (cts / "broken.nii.gz").write_bytes(b"\x1f\x8b not a volume")
    four = VolumeGeometry.from_array((4, 4, 4), np.eye(4))
    write_volume(cts / "not-a-ct.nii.gz", np.full((4, 4, 4), 300, np.int16), four)
    result = _demo(home, tmp_path, "--ct", str(cts), "--output", "out")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "report: out/report.html"
    for name in ("broken.nii.gz", "not-a-ct.nii.gz"):
        assert f"refused: {name}" in result.stdout
    page = (tmp_path / "out" / "report.html").read_text()
    _require_self_contained(page)
    assert "broken.nii.gz" in page
    assert "labels of these models are rough" in page
    # Nothing of the phantoms that an earlier demo showed.
    assert len(json.loads((tmp_path / "out" / "ranking.json").read_text())["ranking"]) == 1
    assert not _left_running(home)


def test_nothing_to_import_is_an_error(home: Path, tmp_path: Path) -> None:
    (tmp_path / "cts").mkdir()
    (tmp_path / "cts" / "broken.nii.gz").write_bytes(b"no volume")
    result = _demo(home, tmp_path, "--ct", "cts")
    assert result.returncode == 2
    assert "no CT could be imported" in result.stderr
    assert "broken.nii.gz" in result.stdout
    assert not _left_running(home)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)]
)
def test_stopped_in_the_middle_it_stops_its_stack(
    home: Path, tmp_path: Path, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        _command(home, "--cases", "1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        start_new_session=True,
    )
    deadline = time.monotonic() + PATIENCE_S
    while not _left_running(home):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the stack was not started"
        time.sleep(0.1)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    # Not "Traceback": the model server's client complains when it is interrupted being made.
    assert "KeyboardInterrupt" not in err
    assert not _left_running(home)
