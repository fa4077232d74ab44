"""Names that a terminal cannot write: an import says what became of them, and does not break."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_cts import write_small_cts


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_an_import_ends_well_on_a_terminal_of_ascii(tmp_path: Path, options: list[str]) -> None:
    write_small_cts(tmp_path / "in" / "\u60a3\u8005 M\u00fcller", 1, 0)
    strange = os.fsencode(tmp_path / "in") + b"/M\xfcller.nii.gz"
    Path(os.fsdecode(strange)).write_bytes(b"no volume")
    done = subprocess.run(
        [sys.executable, "-m", "atlas_flows.cli", "import", "in", "--dataset", "d", *options],
        cwd=tmp_path,
        env=os.environ
        | {"ATLASLOOP_HOME": str(tmp_path / "home"), "LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "Traceback" not in said and "M\\xfcller" in said.replace("\\\\", "\\")
