"""Flows that people start from a form: out of the landing folder and into it, and nowhere else.

Against a real Prefect server, which is asked afterwards what it got to know.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from atlas_core.catalog import Catalog
from atlas_core.errors import InvalidInput, NotFound
from atlas_flows.importing.flow import import_cases
from atlas_flows.models.import_flow import import_model
from atlas_flows.release.flow import release
from atlas_flows.reports.flow import report
from atlas_flows.scoring.ranking_flow import ranking
from atlas_flows.settings import Places
from prefect.client.orchestration import get_client
from prefect_server import prefect_server
from small_cts import write_small_cts

PATIENT = "Zweigeltova_Anna"


@pytest.fixture(scope="module", autouse=True)
def prefect() -> Iterator[None]:
    with prefect_server():
        yield


@pytest.fixture
def landing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The landing folder of a site whose flows run as a worker starts them."""
    monkeypatch.setenv("ATLASLOOP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ATLASLOOP_LANDING", str(tmp_path / "landing"))
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", str(uuid4()))
    (tmp_path / "home").mkdir()
    return tmp_path / "landing"


def artifacts() -> list[Any]:
    with get_client(sync_client=True) as client:
        answer = client.request("POST", "/artifacts/filter", json={})
    found: list[Any] = answer.json()
    return found


def test_what_lands_is_taken_and_the_server_learns_no_name(landing: Path) -> None:
    write_small_cts(landing / PATIENT, 2, 0)
    (landing / PATIENT / f"{PATIENT}.nii.gz").write_bytes(b"no volume")
    counts = import_cases(folder=PATIENT, dataset="hospital")
    assert (counts["taken"], counts["refused"]) == (2, 1)
    with Catalog.open(Places.read().catalog_url) as catalog:
        cases = [case.id for case in catalog.cases("hospital")]
    assert len(cases) == 2
    (told,) = [one for one in artifacts() if one["key"] == "import-summary"]
    assert all(case in told["data"] for case in cases)
    assert PATIENT not in json.dumps([one for one in artifacts() if one["key"] == "import-summary"])
    (kept,) = (landing / "import-reports").iterdir()
    assert kept.stat().st_mode & 0o077 == 0
    fates = {one["source"]: one["fate"] for one in json.loads(kept.read_text())["files"]}
    assert fates[f"{PATIENT}.nii.gz"] == "refused"
    # Again: nothing is new, and that is no failure.
    assert import_cases(folder=PATIENT, dataset="hospital")["there already"] == 2


def test_an_import_of_nothing_fails_and_says_where_the_reasons_are(landing: Path) -> None:
    (landing / "bad").mkdir(parents=True)
    (landing / "bad/ct.nii.gz").write_bytes(b"no volume")
    with pytest.raises(InvalidInput, match=r"import-reports/hospital-.*\.json"):
        import_cases(folder="bad", dataset="hospital")


def test_a_list_is_written_and_a_page_of_nothing_is_not(landing: Path) -> None:
    write_small_cts(landing / "set", 1, 0)
    import_cases(folder="set", dataset="hospital")
    assert ranking(csv="list.csv") == 0  # nothing is scored yet
    assert (landing / "list.csv").read_text().startswith("rank,case,")
    for evaluation in (False, True):
        with pytest.raises(NotFound, match="no case was scored"):
            report(output="page.html", evaluation=evaluation)
    assert not (landing / "page.html").exists()
    with pytest.raises(NotFound):
        ranking(dataset="no_such_one")


@pytest.mark.parametrize(
    "way",
    [
        pytest.param("../outside", marks=pytest.mark.long),
        pytest.param("/etc", marks=pytest.mark.long),
        "link/outside",
        pytest.param("a/../../outside", marks=pytest.mark.long),
    ],
)
def test_no_path_leads_out_of_the_landing_folder(landing: Path, way: str) -> None:
    landing.mkdir()
    outside = landing.parent / "outside"
    write_small_cts(outside, 1, 0)
    (landing / "link").symlink_to(landing.parent)
    for start in (
        lambda: import_cases(folder=way, dataset="hospital"),
        lambda: import_cases(folder=".", dataset="hospital", pairs=way),
        lambda: import_cases(folder=".", dataset="hospital", preset=way),
        lambda: import_model(name="net", nnunet=way),
        lambda: import_model(name="net", onnx=way, config=way),
        lambda: ranking(csv=way),
        lambda: report(output=way),
        lambda: report(evaluation=True, truth=way),
        lambda: release(folder=way),
        lambda: release(folder="new", mapping=way),
        lambda: release(folder="new", patients=way),
    ):
        with pytest.raises(InvalidInput, match="leads out of the landing folder"):
            start()
    assert [path.name for path in outside.iterdir()] == ["case_0.nii.gz"]


def test_a_command_takes_any_path(
    landing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT__RUNTIME__DEPLOYMENT__ID")
    write_small_cts(tmp_path / "elsewhere", 1, 0)
    assert import_cases(folder=str(tmp_path / "elsewhere"), dataset="set")["taken"] == 1
