"""Flow `release`: the assembled labels as a dataset for others.

Started from the form in the Prefect UI or by `atlasloop release`. The folder appears when all of it
is written; a run that was killed leaves nothing that looks like a release.
"""

# No `from __future__ import annotations` here: Prefect resolves the flow's annotations outside of
# this module.

import hashlib
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

from atlas_core.catalog import Catalog
from atlas_core.records import DatasetName
from atlas_core.release import (
    CHECKSUMS,
    CtFiles,
    LicenceRisk,
    ReleaseFormat,
    ReleaseOptions,
    ReleasePlan,
    Split,
    WrittenFile,
    plan_release,
    release_card,
)
from atlas_core.store import CaseStore
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from pydantic import Field

from atlas_flows.release import read_patients, release_folder
from atlas_flows.release.release_folder import ReleaseRun, ReleaseSummary
from atlas_flows.runs import FilePath, ProgressCounter, landing_path
from atlas_flows.runs.progress_artifact import ProgressArtifact
from atlas_flows.runs.shards import name_shards_by, run_shards, shard_state, split_into_shards
from atlas_flows.settings import Places


@task(
    name="release-cases",
    description="Writes the files of a shard of cases, one after the other.",
    task_run_name=name_shards_by("numbers"),
    cache_policy=NO_CACHE,
    persist_result=False,
)
def release_cases(
    numbers: tuple[str, ...], run: ReleaseRun
) -> list[WrittenFile] | State[list[WrittenFile]]:
    """One shard, as a task that Prefect shows."""
    files = release_folder.write_shard(run, numbers)
    left = sum(not any(number in file.path for file in files) for number in numbers)
    return shard_state(files, left)


@flow(
    name="release",
    description="The assembled label maps as a dataset: AbdomenAtlas or nnU-Net layout, splits, "
    "card with licences, statistics and checksums. The folder appears when all of it is written.",
    persist_result=False,
)
def release(
    folder: FilePath,
    name: Annotated[str, Field(min_length=1, max_length=200)] = "Atlas",
    datasets: Annotated[list[DatasetName], Field(max_length=1000)] | None = None,
    format: ReleaseFormat = ReleaseFormat.ATLAS,  # noqa: A002  (what people call it)
    cts: CtFiles = CtFiles.NONE,
    accept: Annotated[list[LicenceRisk], Field(max_length=len(LicenceRisk))] | None = None,
    leave_out: bool = False,
    patients: FilePath | None = None,
    mapping: FilePath | None = None,
    in_flight: Annotated[int, Field(ge=1, le=64)] = 2,
) -> ReleaseSummary:
    """Release what is assembled.

    Args:
        folder: New folder below the landing folder, as releases/atlas-1.0.
        name: Name of the release.
        datasets: Only these. Empty: all.
        format: atlas: a folder per case with combined_labels.nii.gz and segmentations. nnunet:
            imagesTr, labelsTr and dataset.json.
        cts: none: masks only. link: symbolic links into the case
            store. copy: copies.
        accept: What the licences of the datasets forbid, and is to be done nevertheless.
        leave_out: Leave out cases that are not complete. Otherwise one of them refuses the release.
        patients: CSV file below the landing folder with the columns case (its id) and patient: the
            CTs of a patient go into one split.
        mapping: New file that says which case of this site each released case is, and where it came
            from. For this site alone; it lies outside of the release.
        in_flight: Cases worked on at the same time.

    Raises:
        NotComplete: cases without an assembled map of every organ on the grid of their CT.
        InvalidInput: what the licences forbid and was not accepted; a mapping in the release; a
            path out of the landing folder.
        Conflict: there is something of this name.
    """
    places = Places.read()
    options = ReleaseOptions(
        name=name,
        datasets=tuple(datasets or ()),
        format=format,
        cts=cts,
        accepted=frozenset(accept or ()),
        leave_out=leave_out,
        patients=read_patients(None if patients is None else landing_path(patients, places)),
    )
    target = landing_path(folder, places)
    mapped = None if mapping is None else landing_path(mapping, places)
    if mapped is not None:
        release_folder.require_apart(mapped, target)
    started = time.monotonic()
    with Catalog.open(places.catalog_url) as catalog:
        store = CaseStore(places.store)
        plan = plan_release(catalog, store, options)
    with release_folder.new_release(target, plan) as draft:
        files = _write_all(plan, store, draft, in_flight)
        if mapped is not None:
            release_folder.write_mapping(mapped, plan, store)
    summary = _summary(target, plan, len(files), time.monotonic() - started)
    create_markdown_artifact(release_card(plan), key="release-card", description=f"Card of {name}")
    return summary


def _write_all(
    plan: ReleasePlan, store: CaseStore, draft: Path, in_flight: int
) -> tuple[WrittenFile, ...]:
    total = len(plan.cases)
    get_run_logger().info("%d cases to release, %d left out", total, len(plan.left_out))
    with ProgressArtifact(total, "release-progress", "Cases released") as shown:
        run = ReleaseRun(plan, store, draft, ProgressCounter(total, shown))
        shards = {"numbers": split_into_shards([case.number for case in plan.cases], in_flight)}
        files = run_shards(release_cases, shards, run, in_flight)
    return release_folder.finish(run, files)


def _summary(target: Path, plan: ReleasePlan, files: int, seconds: float) -> ReleaseSummary:
    counts = Counter(case.split for case in plan.cases)
    return ReleaseSummary(
        folder=str(target),
        cases=len(plan.cases),
        splits={split: counts[split] for split in Split},
        datasets={dataset.name: dataset.licence for dataset in plan.datasets},
        left_out={case.case_id: case.why for case in plan.left_out},
        files=files,
        checksum=hashlib.sha256((target / CHECKSUMS).read_bytes()).hexdigest(),
        seconds=round(seconds, 3),
    )
