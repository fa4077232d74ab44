"""Flows `pull` and `push` on a real Prefect server: a study out of Orthanc, scored, and everything
that can go back to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from atlas_core.catalog import Catalog
from atlas_core.dicom_export import ObjectKind
from atlas_core.errors import InvalidInput
from atlas_core.store import CaseStore
from atlas_embedded.access import prefect_auth
from atlas_flows.pacs.pull_flow import pull
from atlas_flows.pacs.push_flow import push
from atlas_flows.scoring.flow import score
from orthanc import PASSWORD, USER, Orthanc
from pacs_series import NAME, hospital_series
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    temporary_settings,
)
from prefect_api import ask_prefect
from pydicom import Dataset
from stack import Stack

pytestmark = pytest.mark.stack

DATASET = "from-the-pacs"


@pytest.fixture
def site(
    prefect_stack: Stack, orthanc: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stack]:
    """The stack's site as a flow finds it, beside a PACS; its cases are gone after the test."""
    settings = prefect_stack.settings
    pacs = {
        "DICOMWEB_URL": orthanc.dicomweb,
        "DICOMWEB_USER": USER,
        "DICOMWEB_PASSWORD": PASSWORD,
        "INBOX": str(tmp_path / "inbox"),
    }
    for name, value in pacs.items():
        monkeypatch.setenv(f"ATLASLOOP_PACS_{name}", value)
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ATLASLOOP_LANDING", str(tmp_path))
    server = {
        PREFECT_API_URL: settings.prefect_api_url,
        PREFECT_API_AUTH_STRING: prefect_auth(settings),
    }
    with temporary_settings(updates=server):
        yield prefect_stack
    store = CaseStore(settings.store)
    with Catalog.open(settings.catalog_url) as catalog:
        for case in catalog.cases(DATASET):
            catalog.delete_case(case.id)
            store.delete_case(case.id)


def returned(orthanc: Orthanc, folder: Path) -> list[Dataset]:
    """What is in the PACS besides CTs."""
    kinds = ("SEG", "RTSTRUCT", "SR", "OT")
    return [one for kind in kinds for one in orthanc.objects(kind, folder / kind)]


def test_a_study_comes_in_and_everything_goes_back_to_it(
    site: Stack, orthanc: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = hospital_series()
    orthanc.put(images, tmp_path / "sent")
    patients = tmp_path / "patients.txt"
    patients.write_text(f"{images[0].PatientID}\n")
    assert len(pull(dataset=DATASET, patient_file=str(patients)).outcomes) == 1
    assert pull(dataset=DATASET, patient_file=str(patients)).skipped == 1
    with Catalog.open(site.settings.catalog_url) as catalog:
        (case,) = catalog.cases(DATASET)
    score(dataset=DATASET)
    assert [one.case_id for one in push(cases=[case.id]).outcomes] == [case.id]
    assert [one.Modality for one in returned(orthanc, tmp_path / "first")] == ["SEG"]
    summary = push(cases=[case.id], kinds=list(ObjectKind))
    assert not summary.failures and len(summary.outcomes) == 1
    back = returned(orthanc, tmp_path / "back")
    names = [str(one.SOPClassUID.name) for one in back]
    assert [names.count(f"{kind} Storage") for kind in (
        "Segmentation", "RT Structure Set", "Comprehensive 3D SR",
    )] == [1, 1, 1]  # fmt: skip
    assert names.count("Parametric Map Storage") == len(names) - 3 >= 1
    assert {one.StudyInstanceUID for one in back} == {images[0].StudyInstanceUID}
    assert {str(one.PatientName) for one in back} == {f"{NAME}^Anna"}
    assert push(cases=[case.id], kinds=list(ObjectKind)).skipped == 1  # all of it is there
    for key, shown in (("pull-summary", "**1** series"), ("push-summary", "**0** cases pushed")):
        told = ask_prefect(site.settings, f"/artifacts/{key}/latest")
        assert shown in told["data"] and NAME not in json.dumps(told)
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "a-form")
    with pytest.raises(InvalidInput, match="out of the landing folder"):
        pull(dataset=DATASET, patient_file="../patients.txt")
