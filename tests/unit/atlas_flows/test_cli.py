"""The command line: help everywhere, one line per error, output that programs can read."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import typer
from atlas_core.catalog import Catalog
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import write_volume
from atlas_core.model_spec import ModelRef, ensemble_key
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.records import Case, Dataset, OrganScore, RankBy, Reading, Score
from atlas_core.release import CtFiles, LicenceRisk, ReleaseFormat
from atlas_core.review import TOP_SHARE
from atlas_embedded.settings import ComponentName
from atlas_flows.cli import app
from atlas_flows.commands import options
from atlas_flows.commands.case_progress import case_progress
from atlas_flows.commands.release import CtFilesName, FormatName, LicenceRiskName
from atlas_flows.commands.stack import PartName
from atlas_flows.commands.terminal import write_text
from atlas_flows.scoring import log
from typer.testing import CliRunner

EVALUATIONS = (
    "attention", "labels", "architectures", "annotators", "error-found", "efficiency",
    "false-positives",
)  # fmt: skip

MODEL_COMMANDS = (
    "list", "show", "import", "train", "finetune", "export", "evaluate", "compare", "promote",
    "rollback", "retire",
)  # fmt: skip

ENSEMBLE_COMMANDS = ("create", "show", "list", "add", "remove", "use")

COMMANDS = (
    ["demo"],
    ["loop-demo"],
    ["import"],
    ["check"],
    ["presets"],
    ["phantoms"],
    ["score"],
    ["ranking"],
    ["report"],
    ["evaluate", "ranking"],
    ["iterate"],
    ["iterations"],
    ["simulate-annotator"],
    ["assemble"],
    ["release"],
    ["export-dicom"],
    *(["pacs", name] for name in ("pull", "push", "list", "receive")),
    ["organs", "list"],
    ["organs", "show"],
    ["organs", "extend"],
    *(["evaluate", name] for name in EVALUATIONS),
    ["backup"],
    ["restore"],
    ["migrate"],
    *(["models", name] for name in MODEL_COMMANDS),
    *(["ensemble", name] for name in ENSEMBLE_COMMANDS),
    ["up"],
    ["down"],
    ["status"],
    ["logs"],
    ["doctor"],
)


def _atlasloop(
    home: Path, *arguments: str, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "atlas_flows.cli", "--home", str(home), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
        check=False,
    )


@pytest.fixture
def scored_home(tmp_path: Path) -> Path:
    """A home whose catalog holds 40 scored cases; case c00 has the largest attention."""
    home = tmp_path / "home"
    home.mkdir()
    ref = ModelRef(name="unet", version=0, sha256="0" * 64)
    with Catalog.open(f"sqlite:///{home / 'catalog.sqlite'}") as catalog:
        catalog.add_dataset(Dataset(name="d"))
        now = datetime.now(UTC)
        for number in range(40):
            case_id = f"c{number:02d}"
            catalog.add_case(
                Case(
                    id=case_id,
                    dataset="d",
                    content_sha256=f"{number:064x}",
                    shape=(2, 2, 2),
                    affine=((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)),
                    imported_at=now,
                )
            )
            size = OrganScore(
                organ="liver",
                attention_voxels=1000 - number,
                attention_ml=100 - number,
                pseudo_label_ml=1,
                disagreement=(100 - number) / 100,
                expected_ml=1,
                attended_ml=100 - number,
            )
            catalog.record_score(
                Score(
                    case_id=case_id,
                    reading=Reading.PAPER,
                    ensemble=ensemble_key([ref]),
                    models=(ref,),
                    organs=(size,),
                    seconds=1,
                    created_at=now,
                )
            )
    return home


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_with_an_example(command: Sequence[str]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert f"Example: atlasloop {' '.join(command)}" in " ".join(result.output.split())


def test_the_list_of_commands_here_is_complete() -> None:
    click_app = typer.main.get_command(app)
    names = set(click_app.list_commands(None))  # type: ignore[attr-defined,arg-type]
    assert names == {command[0] for command in COMMANDS}
    models = click_app.commands["models"]  # type: ignore[attr-defined]
    assert set(models.commands) == set(MODEL_COMMANDS)
    organs = click_app.commands["organs"]  # type: ignore[attr-defined]
    assert {("organs", name) for name in organs.commands} <= {tuple(c) for c in COMMANDS}
    evaluations = click_app.commands["evaluate"]  # type: ignore[attr-defined]
    assert set(evaluations.commands) == {"ranking", *EVALUATIONS}


def test_choices_that_commands_repeat_are_those_of_the_core() -> None:
    assert set(get_args(PartName)) == set(get_args(ComponentName))
    assert list(options.ReadingName) == list(Reading)
    assert list(get_args(options.RankByName)) == list(RankBy)
    assert list(get_args(FormatName)) == list(ReleaseFormat)
    assert list(get_args(CtFilesName)) == list(CtFiles)
    assert list(LicenceRiskName) == list(LicenceRisk)
    assert options.TOP_SHARE == TOP_SHARE


def test_help_loads_nothing_heavy() -> None:
    """Half a second instead of three: no numerics, no database, no server's client."""
    script = "import sys, atlas_flows.cli; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {
        "grpc", "nibabel", "numpy", "prefect", "pydantic", "pydicom", "scipy", "sqlalchemy",
    }  # fmt: skip
    assert "atlas_flows" in loaded
    assert heavy.isdisjoint(loaded), heavy.intersection(loaded)


def test_what_a_run_waits_for_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with case_progress("scoring", log):
        log.warning("attention service: trying again")
    log.warning("after the run")
    shown = capsys.readouterr().err
    assert "attention service: trying again" in shown
    assert "after the run" not in shown


def test_an_error_is_one_line_on_stderr(tmp_path: Path) -> None:
    result = _atlasloop(tmp_path / "home", "ranking", "--top", "3", "--share", "0.1")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "error: top and share exclude each other; give one of them"
    ]


def test_debug_shows_where_an_error_came_from(tmp_path: Path) -> None:
    result = _atlasloop(tmp_path, "--debug", "ranking", "--top", "3", "--share", "0.1")
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_a_setting_that_cannot_work_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("attention_port = 99999999\n")
    result = _atlasloop(tmp_path, "ranking")
    assert result.returncode == 2
    assert "attention_port" in result.stderr


def test_score_without_a_prefect_server_names_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("prefect_port = 1\n")
    result = _atlasloop(tmp_path, "score")
    assert result.returncode == 2
    assert "atlasloop up" in result.stderr
    assert "Traceback" not in result.stderr


def test_ranking_as_json(scored_home: Path) -> None:
    result = _atlasloop(scored_home, "ranking", "--json", "--share", "0.05")
    shown = json.loads(result.stdout)
    assert [row["case"] for row in shown["ranking"]] == ["c00", "c01"]
    first = shown["ranking"][0]
    assert (first["rank"], first["dataset"], first["attention_ml"]) == (1, "d", 100)
    assert first["organs"]["liver"]["attention_voxels"] == 1000
    assert first["left_out"] == []


def test_ranking_as_csv(scored_home: Path, tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    assert _atlasloop(scored_home, "ranking", "--csv", str(path)).returncode == 0
    rows = list(csv.DictReader(path.open()))
    assert [row["rank"] for row in rows] == [str(n) for n in range(1, 41)]
    assert rows[0]["liver_ml"] == "100.000"
    assert rows[0]["spleen_ml"] == ""
    assert [f"{organ}_ml" in rows[0] for organ in ABDOMEN_ATLAS.names] == [True] * 9


def test_a_dataset_that_does_not_exist_is_an_error(scored_home: Path) -> None:
    result = _atlasloop(scored_home, "ranking", "--dataset", "typo")
    assert result.returncode == 2
    assert "'typo'" in result.stderr


def test_ranking_of_nothing_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    result = _atlasloop(tmp_path / "home", "ranking")
    assert result.returncode == 0
    assert "atlasloop score" in result.stdout


def _ct(path: Path, fill: int) -> None:
    voxels = np.full((12, 12, 12), -1000, np.int16)
    voxels[3:9, 3:9, 3:9] = fill
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, voxels, VolumeGeometry.from_array((12, 12, 12), np.eye(4)))


def test_import_takes_what_it_can_and_says_what_not(tmp_path: Path) -> None:
    cts = tmp_path / "cts"
    _ct(cts / "a.nii.gz", 40)
    _ct(cts / "b.nii.gz", 60)
    (cts / "broken.nii.gz").write_bytes((cts / "a.nii.gz").read_bytes()[:100])
    first = _atlasloop(tmp_path / "home", "import", str(cts), "--dataset", "mine", "--json")
    assert first.returncode == 0, first.stderr
    summary = json.loads(first.stdout)
    assert len(summary["taken"]) == 2
    assert [note["source"] for note in summary["refused"]] == ["broken.nii.gz"]
    again = _atlasloop(tmp_path / "home", "import", str(cts), "--dataset", "mine")
    assert again.returncode == 0
    assert "0 cases taken into mine, 2 were there already, 1 refused" in again.stdout


def test_import_of_nothing_but_bad_files_is_a_no(tmp_path: Path) -> None:
    bad = tmp_path / "cts" / "broken.nii.gz"
    bad.parent.mkdir()
    bad.write_bytes(b"not a volume")
    result = _atlasloop(tmp_path / "home", "import", str(bad.parent), "--dataset", "mine")
    assert result.returncode == 1
    assert "broken.nii.gz" in result.stdout


def test_phantoms_and_their_truth_lie_apart(tmp_path: Path) -> None:
    folder = tmp_path / "phantoms"
    result = _atlasloop(
        tmp_path, "phantoms", str(folder), "--cases", "1", "--seed", "1", "--columns", "32"
    )
    assert result.returncode == 0, result.stderr
    assert (folder / "PHANTOM_00000001" / "ct.nii.gz").exists()
    assert (folder / "truth" / "PHANTOM_00000001" / "combined_labels.nii.gz").exists()
    summary = _atlasloop(
        tmp_path / "home", "import", str(folder), "--dataset", "p", "--preset", "phantoms", "--json"
    )
    assert summary.returncode == 0, summary.stderr
    taken = json.loads(summary.stdout)["taken"]
    assert [case["organs"] for case in taken] == [[]]  # the truth is no original label


def test_presets_name_the_papers_datasets() -> None:
    result = CliRunner().invoke(app, ["presets", "--json"])
    names = {preset["name"] for preset in json.loads(result.stdout)}
    assert {"btcv", "lits", "kits", "phantoms"} <= names


def test_a_written_file_is_complete_and_readable_by_others(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "report.html"
    write_text(path, "old")
    write_text(path, "new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, scored_home: Path) -> None:
    (tmp_path / "file").write_text("")
    result = _atlasloop(scored_home, "ranking", "--csv", str(tmp_path / "file" / "list.csv"))
    assert result.returncode == 2
    assert "cannot write list.csv" in result.stderr


def test_a_flow_works_in_the_home_that_its_command_was_given(tmp_path: Path) -> None:
    """Flows read their settings by themselves, so that the Prefect UI can start them too."""
    program = (
        "import sys; from pathlib import Path; from atlas_flows.settings import Places;"
        "here = Places.read(Path(sys.argv[1])); here.enter_prefect();"
        "print(here.catalog_url == Places.read().catalog_url, here.store == Places.read().store)"
    )
    home = tmp_path / "elsewhere"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ATLASLOOP_")}
    said = subprocess.run(
        [sys.executable, "-c", program, str(home)],
        capture_output=True, text=True, check=True, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert said.stdout.split() == ["True", "True"]
