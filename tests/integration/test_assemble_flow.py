"""Flows `assemble` and `release` as people start them, against a real Prefect server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from atlas_core.assembly import Assemblies, read_assembled
from atlas_core.catalog import Catalog
from atlas_core.records import LabelSource
from atlas_core.store import CaseStore
from labelled_site import LabelledSite, all_organs, cube, label_map
from prefect_api import ask_prefect
from stack import Stack

pytestmark = pytest.mark.stack

CASES = 6
BEFORE_THE_KILL = 3
PATIENCE_S = 300.0
"""How long a test waits for something that happens in seconds."""


@pytest.fixture
def site(prefect_stack: Stack) -> Iterator[LabelledSite]:
    """The stack's catalog and store with `CASES` scored cases; they are gone after the test."""
    store = CaseStore(prefect_stack.settings.store)
    with Catalog.open(prefect_stack.settings.catalog_url) as catalog:
        site = LabelledSite(catalog, store)
        site.add_dataset("assembled", licence="CC-BY-4.0")
        for number in range(CASES):
            site.add_case(f"case-{number}", "assembled")
            site.add_prediction(f"case-{number}", all_organs(number % 3))
        yield site
        for case in catalog.cases():
            catalog.delete_case(case.id)
            store.delete_case(case.id)


def start(stack: Stack, *arguments: str) -> subprocess.Popen[str]:
    """The command in a session of its own, so that a signal meets nobody else."""
    return subprocess.Popen(
        [sys.executable, "-m", "atlas_flows.cli", *arguments],
        env=stack.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def atlasloop(stack: Stack, *arguments: str) -> tuple[int, str, str]:
    process = start(stack, *arguments)
    out, err = process.communicate()
    return process.returncode, out, err


def test_a_case_that_was_scored_again_is_assembled_from_the_newer_result(
    prefect_stack: Stack, site: LabelledSite
) -> None:
    for shift in (0, 2):
        site.add_prediction("case-0", all_organs(shift))
        status, _, err = atlasloop(prefect_stack, "assemble", "--case", "case-0")
        assert status == 0, err
        assembly = Assemblies(site.catalog).of_cases(["case-0"])["case-0"]
        found = read_assembled(site.store, site.catalog.case("case-0"), assembly)
        assert np.array_equal(found.voxels, label_map(all_organs(shift)))


def artifact(stack: Stack, key: str) -> dict[str, Any]:
    """The newest artifact of this key, as the UI shows it."""
    return dict(ask_prefect(stack.settings, f"/artifacts/{key}/latest"))


def test_a_run_that_is_killed_is_completed_by_the_next_one(
    prefect_stack: Stack, site: LabelledSite, tmp_path: Path
) -> None:
    """A named pipe in the place of one label holds the run in its middle until it is killed."""
    label = site.add_label("case-3", "liver", LabelSource.REVISED, cube(3, 5))
    path = site.store.path(label.path)
    held_back = path.rename(tmp_path / "held-back.nii.gz")
    os.mkfifo(path)
    assemblies = Assemblies(site.catalog)
    process = start(prefect_stack, "assemble", "--in-flight", "1")
    everybody = [case.id for case in site.catalog.cases()]
    deadline = time.monotonic() + PATIENCE_S
    while len(assemblies.of_cases(everybody)) < BEFORE_THE_KILL:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the run did not come to its middle"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = assemblies.of_cases(everybody)
    assert sorted(before) == everybody[:BEFORE_THE_KILL]
    path.unlink()
    held_back.rename(path)

    status, out, err = atlasloop(prefect_stack, "assemble", "--json")
    assert status == 0, err
    summary = json.loads(out)
    assert summary["skipped"] == BEFORE_THE_KILL
    assert len(summary["outcomes"]) == CASES - BEFORE_THE_KILL
    after = assemblies.of_cases(everybody)
    assert {case_id: after[case_id] for case_id in before} == before  # not done again
    for number, case_id in enumerate(everybody):
        expected = label_map(all_organs(number % 3))
        if case_id == "case-3":
            assert after[case_id].by_organ["liver"].source is LabelSource.REVISED
            continue
        found = read_assembled(site.store, site.catalog.case(case_id), after[case_id])
        assert np.array_equal(found.voxels, expected)
    sources = json.loads(artifact(prefect_stack, "assemble-provenance")["data"])
    liver = next(row for row in sources if row["organ"] == "liver")
    assert (liver["pseudo"], liver["revised"]) == (CASES - 1, 1)


def test_failures_are_told_and_the_exit_status_says_so(
    prefect_stack: Stack, site: LabelledSite
) -> None:
    site.store.ct_path("case-1").unlink()
    status, out, err = atlasloop(prefect_stack, "assemble", "--largest", "liver=1")
    assert status == 1
    assert "5 assembled, 0 up to date, 1 not assembled" in out
    said = " ".join(out.split())
    assert "case-1 │ failed │ the CT is gone from the case store" in said  # named once
    assert "1 cases are not assembled" in err
    status, out, err = atlasloop(prefect_stack, "assemble", "--largest", "liver=many")
    assert status == 2
    assert "malformed post-processing" in err


def test_a_release_is_made_by_the_command(
    prefect_stack: Stack, site: LabelledSite, tmp_path: Path
) -> None:
    assert atlasloop(prefect_stack, "assemble", "--masks")[0] == 0
    folder = tmp_path / "atlas-1.0"
    status, out, err = atlasloop(prefect_stack, "release", str(folder), "--json")
    assert status == 0, err
    summary = json.loads(out)
    assert summary["cases"] == CASES
    assert (folder / "BDMAP_00000001/combined_labels.nii.gz").is_file()
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=folder, check=True)
    assert artifact(prefect_stack, "release-card")["data"] == (folder / "README.md").read_text()
    status, _, err = atlasloop(prefect_stack, "release", str(folder))
    assert status == 2
    assert "something of this name already" in err
