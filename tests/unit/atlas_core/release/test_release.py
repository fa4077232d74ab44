"""Releases: the same bytes again, whole or not at all, complete, and readable by our own import."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from atlas_core.assembly import Assemblies, read_assembled
from atlas_core.atomic_writes import new_folder
from atlas_core.catalog import Catalog
from atlas_core.errors import Conflict, CorruptFile, InvalidInput, NotFound
from atlas_core.imaging import read_header, read_label
from atlas_core.importing import import_folder
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.records import Dataset, LabelSource
from atlas_core.release import (
    CtFiles,
    LicenceRisk,
    ReleaseFormat,
    ReleaseOptions,
    Split,
    plan_release,
)
from atlas_core.release.licences import licence_problems
from atlas_core.release.plan import NotComplete
from atlas_core.release.splits import PAPER_CASES, SplitCase, split_cases
from atlas_core.release.statistics import volume_statistics
from atlas_core.store import CaseStore
from atlas_flows.assembly import AssemblyRequest, case_assembly
from atlas_flows.assembly.case_assembly import AssemblyRun
from atlas_flows.release import read_patients, release_folder
from atlas_flows.release.release_folder import ReleaseRun
from atlas_flows.runs import ProgressCounter
from labelled_site import LabelledSite, all_organs, box, cube, open_site

ORIGINAL, REVISED = LabelSource.ORIGINAL, LabelSource.REVISED
CASES = 5


@pytest.fixture
def site(tmp_path: Path) -> Iterator[LabelledSite]:
    """Five assembled cases of two datasets; the first lacks a gallbladder, the second is
    revised."""
    site = open_site(tmp_path / "home")
    with site.catalog:
        site.add_dataset("free", licence="CC-BY-4.0", title="A free one")
        site.add_dataset("own", licence="CC0-1.0")
        for number in range(CASES):
            case_id = f"case-{number}"
            site.add_case(case_id, "free" if number < 3 else "own")
            site.add_prediction(case_id, all_organs(number % 3))
        site.add_label("case-0", "gall_bladder", ORIGINAL, box())
        site.add_label("case-1", "liver", REVISED, cube(3, 5))
        assemble(site)
        yield site


def assemble(site: LabelledSite) -> None:
    request = AssemblyRequest()
    plan = case_assembly.plan_assembly(request, site.catalog, site.store)
    progress = ProgressCounter(len(plan.cases), lambda *_: None)
    run = AssemblyRun(request, site.catalog, site.store, progress)
    assert all(outcome.good for outcome in case_assembly.assemble_shard(run, plan.cases))


def release(site: LabelledSite, folder: Path, **options: object) -> Path:
    """As the flow does it, in two shards."""
    plan = plan_release(site.catalog, site.store, ReleaseOptions(**options))  # type: ignore[arg-type]
    numbers = [case.number for case in plan.cases]
    with release_folder.new_release(folder, plan) as draft:
        run = ReleaseRun(plan, site.store, draft, ProgressCounter(len(plan.cases), lambda *_: None))
        files = [
            *release_folder.write_shard(run, numbers[2:]),
            *release_folder.write_shard(run, numbers[:2]),
        ]
        release_folder.finish(run, files)
    return folder


def content(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_release_holds_map_and_masks_of_every_case(site: LabelledSite, tmp_path: Path) -> None:
    folder = release(site, tmp_path / "atlas")
    rows = table(folder / "cases.csv")
    assert [row["id"] for row in rows] == [f"BDMAP_{n:08d}" for n in range(1, CASES + 1)]
    for row in rows:
        case = site.catalog.find_case_by_content(row["content_sha256"])
        assert case is not None
        assembly = Assemblies(site.catalog).current(case.id)
        assert assembly is not None
        expected = read_assembled(site.store, case, assembly).voxels
        combined = read_label(folder / row["id"] / "combined_labels.nii.gz")
        assert np.array_equal(combined.voxels, expected)
        assert case.geometry.same_grid(combined.geometry)
        for organ in ABDOMEN_ATLAS:
            mask = read_label(folder / row["id"] / "segmentations" / f"{organ.name}.nii.gz")
            assert np.array_equal(mask.voxels != 0, expected == organ.label)
            assert mask.geometry.same_grid(case.geometry)
    assert not list(folder.rglob("ct.nii.gz"))  # masks only


def test_two_releases_of_one_state_are_equal_byte_for_byte(
    site: LabelledSite, tmp_path: Path
) -> None:
    first = content(release(site, tmp_path / "one", cts=CtFiles.COPY))
    os.utime(site.store.ct_path("case-0"), (0, 0))
    assert content(release(site, tmp_path / "two", cts=CtFiles.COPY)) == first
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=tmp_path / "one", check=True)
    listed = {
        line.split("  ")[1] for line in (tmp_path / "one/SHA256SUMS").read_text().splitlines()
    }
    assert listed == set(first) - {"SHA256SUMS"}


def test_a_release_can_be_imported_again(site: LabelledSite, tmp_path: Path) -> None:
    folder = release(site, tmp_path / "atlas", cts=CtFiles.COPY)
    with Catalog.open(f"sqlite:///{tmp_path}/other.sqlite") as catalog:
        store = CaseStore(tmp_path / "other")
        summary = import_folder(folder, "again", "abdomenatlas", catalog=catalog, store=store)
        assert len(summary.taken) == CASES
        assert not summary.refused
        for row in table(folder / "cases.csv"):
            there = catalog.find_case_by_content(row["content_sha256"])
            here = site.catalog.find_case_by_content(row["content_sha256"])
            assert there is not None
            assert here is not None
            assembly = Assemblies(site.catalog).current(here.id)
            assert assembly is not None
            labels = {label.organ: label for label in catalog.labels(there.id, ORIGINAL)}
            assert {name: label.voxels for name, label in labels.items()} == {
                organ.organ: organ.voxels for organ in assembly.organs
            }
            expected = read_label(folder / row["id"] / "combined_labels.nii.gz").voxels
            for name, label in labels.items():
                mask = read_label(store.path(label.path)).voxels
                assert np.array_equal(mask != 0, expected == ABDOMEN_ATLAS[name].label)


def test_the_card_and_the_tables_say_what_the_files_hold(
    site: LabelledSite, tmp_path: Path
) -> None:
    folder = release(site, tmp_path / "atlas", name="Tiny Atlas")
    card = (folder / "README.md").read_text()
    assert card.startswith("# Tiny Atlas\n")
    assert "| free | A free one | 3 | CC-BY-4.0 |" in card
    provenance = {(row["id"], row["organ"]): row for row in table(folder / "provenance.csv")}
    assert provenance["BDMAP_00000001", "gall_bladder"]["source"] == "original"
    assert provenance["BDMAP_00000001", "gall_bladder"]["voxels"] == "0"
    assert provenance["BDMAP_00000002", "liver"]["source"] == "revised"
    assert "anna" not in "".join(p.read_text() for p in folder.glob("*.*"))  # nobody is named
    splits = {s: (folder / f"splits/{s.value}.txt").read_text().split() for s in Split}
    numbers = sorted(number for split in splits.values() for number in split)
    assert numbers == [f"BDMAP_{n:08d}" for n in range(1, CASES + 1)]
    plan = plan_release(site.catalog, site.store, ReleaseOptions())
    volumes = {(row.dataset, row.organ): row for row in volume_statistics(plan)}
    gall_bladder = volumes["free", "gall_bladder"]
    assert (gall_bladder.cases, gall_bladder.absent) == (2, 1)
    liver = volumes["own", "liver"]
    assert liver.median == liver.q1 == pytest.approx(3.0)  # 2 x 2 x 3 voxels of 0.25 ml
    rows = {(row["dataset"], row["organ"]): row for row in table(folder / "organ_volumes.csv")}
    assert rows["own", "liver"]["median_ml"] == "3.000"


def test_nnunet_gets_its_raw_layout(site: LabelledSite, tmp_path: Path) -> None:
    folder = release(site, tmp_path / "raw", format=ReleaseFormat.NNUNET, cts=CtFiles.LINK)
    described = json.loads((folder / "dataset.json").read_text())
    labels = sorted(path.name for path in (folder / "labelsTr").iterdir())
    images = sorted(path.name for path in (folder / "imagesTr").iterdir())
    assert described["numTraining"] == len(labels) == len(images)
    assert described["labels"]["liver"] == ABDOMEN_ATLAS["liver"].label
    assert images == [name.replace(".nii.gz", "_0000.nii.gz") for name in labels]
    link = folder / "imagesTr" / images[0]
    assert link.is_symlink()
    assert read_header(link).geometry.same_grid(
        read_header(folder / "labelsTr" / labels[0]).geometry
    )
    (fold,) = json.loads((folder / "splits_final.json").read_text())
    assert sorted(fold["train"] + fold["val"]) == [name.split(".")[0] for name in labels]
    with Catalog.open(f"sqlite:///{tmp_path}/other.sqlite") as catalog:
        store = CaseStore(tmp_path / "other")
        summary = import_folder(folder, "again", catalog=catalog, store=store)
        assert len(summary.taken) == CASES
        assert all(len(case.organs) == len(ABDOMEN_ATLAS) for case in summary.taken)


def test_a_case_that_is_not_complete_refuses_the_release_or_is_left_out(
    site: LabelledSite, tmp_path: Path
) -> None:
    site.add_case("late", "own")
    site.add_label("case-3", "spleen", REVISED, cube(1, 3), hour=5)
    site.store.ct_path("case-4").unlink()
    with pytest.raises(NotComplete, match="3 of 6 cases are not complete") as caught:
        release(site, tmp_path / "atlas")
    whys = {case.case_id: case.why for case in caught.value.cases}
    assert "not assembled" in whys["late"]
    assert "spleen changed since" in whys["case-3"]
    assert "ct.nii.gz" in whys["case-4"]
    assert not (tmp_path / "atlas").exists()
    folder = release(site, tmp_path / "atlas", leave_out=True)
    assert len(table(folder / "cases.csv")) == 3
    card = (folder / "README.md").read_text()
    assert "3 CTs of these datasets, which are not complete" in card
    assert "late" not in card


def test_a_map_that_is_not_the_one_on_record_leaves_nothing(
    site: LabelledSite, tmp_path: Path
) -> None:
    first, second = (Assemblies(site.catalog).current(f"case-{n}") for n in (0, 1))
    assert first is not None
    assert second is not None
    site.store.path(second.path).write_bytes(site.store.path(first.path).read_bytes())
    with pytest.raises(CorruptFile, match="case-1"):
        release(site, tmp_path / "atlas")
    assert not list(tmp_path.glob("*atlas*"))


def test_what_is_there_is_not_overwritten(site: LabelledSite, tmp_path: Path) -> None:
    (tmp_path / "atlas").mkdir()
    with pytest.raises(Conflict, match="something of this name"):
        release(site, tmp_path / "atlas")


def test_a_killed_release_leaves_a_draft_that_the_next_one_removes(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from atlas_core.atomic_writes import new_folder\n"
        "with new_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').write_text('')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "atlas")], check=False)
    (draft,) = tmp_path.iterdir()
    assert draft.name.startswith(".atlas.")
    with new_folder(tmp_path / "atlas") as folder:
        (folder / "whole").write_text("")
    assert [path.name for path in tmp_path.iterdir()] == ["atlas"]


def test_numbers_stay_when_cases_are_added(site: LabelledSite, tmp_path: Path) -> None:
    before = plan_release(site.catalog, site.store, ReleaseOptions())
    site.catalog.add_case(
        site.catalog.case("case-0").model_copy(
            update={
                "id": "aaa", "content_sha256": "f" * 64,
                "imported_at": before.cases[0].case.imported_at.replace(year=2030),
            }
        )
    )  # fmt: skip
    after = plan_release(site.catalog, site.store, ReleaseOptions(leave_out=True))
    assert [(c.number, c.case.id) for c in after.cases] == [
        (c.number, c.case.id) for c in before.cases
    ]


def test_a_number_means_one_ct_in_every_release(site: LabelledSite) -> None:
    """Whatever was chosen, left out or deleted before: who has two releases may join them."""

    def numbers(**options: object) -> dict[str, str]:
        plan = plan_release(site.catalog, site.store, ReleaseOptions(**options))  # type: ignore[arg-type]
        return {case.case.content_sha256: case.number for case in plan.cases}

    published = numbers(datasets=("own",))
    site.add_case("between", "free")
    content = site.catalog.case("between").content_sha256
    published |= numbers(leave_out=True)
    site.add_prediction("between", all_organs())
    assemble(site)
    everything = numbers()
    assert everything.items() >= published.items()
    assert everything[content] not in published.values()
    site.catalog.delete_case("between")
    site.add_case("new", "free")
    site.add_prediction("new", all_organs())
    assemble(site)
    assert everything[content] not in numbers().values()


def test_plans_made_at_once_give_every_case_one_number(site: LabelledSite) -> None:
    with ThreadPoolExecutor(4) as pool:
        plans = list(
            pool.map(
                lambda _: plan_release(site.catalog, site.store, ReleaseOptions()).cases, range(4)
            )
        )
    assert len(set(plans)) == 1
    assert len({case.number for case in plans[0]}) == CASES


def test_where_a_case_comes_from_is_told_apart(site: LabelledSite, tmp_path: Path) -> None:
    site.add_case("named", "own", source="DOE^JOHN_19500101/ct.nii.gz")
    site.add_prediction("named", all_organs())
    assemble(site)
    folder = release(site, tmp_path / "atlas", cts=CtFiles.COPY)
    plan = plan_release(site.catalog, site.store, ReleaseOptions())
    for path in folder.rglob("*"):
        assert "DOE" not in path.name
        if path.is_file():
            content = path.read_bytes()
            text = gzip.decompress(content) if path.suffix == ".gz" else content
            assert b"DOE" not in text
            assert b"case-0" not in text
    release_folder.write_mapping(tmp_path / "private.csv", plan, site.store)
    assert stat.S_IMODE((tmp_path / "private.csv").stat().st_mode) == 0o600
    rows = {row["case"]: row for row in table(tmp_path / "private.csv")}
    assert rows["named"]["source"] == "DOE^JOHN_19500101/ct.nii.gz"
    combined = read_label(folder / rows["named"]["id"] / "combined_labels.nii.gz")
    assert combined.geometry.same_grid(
        read_header(site.store.root / rows["named"]["ct_path"]).geometry
    )
    with pytest.raises(InvalidInput, match="inside the release"):
        release_folder.require_apart(folder / "private.csv", folder)


@pytest.mark.parametrize(
    ("licences", "risks"),
    [
        (["CC-BY-4.0", "CC0-1.0", "CC-BY-3.0"], []),
        (["CC BY-NC-SA", "CC-BY-NC-SA-4.0"], []),
        ([""], [LicenceRisk.UNKNOWN]),
        (["ask the hospital"], [LicenceRisk.UNKNOWN]),
        (["CC-BY-NC-ND-4.0"], [LicenceRisk.NO_DERIVATIVES]),
        (["CC-BY-4.0", "CC BY-NC-SA"], [LicenceRisk.NON_COMMERCIAL_MIX]),
        (["CC-BY-SA-4.0", "GPL-3.0"], [LicenceRisk.SHARE_ALIKE]),
        (
            ["CC-BY-SA-4.0", "CC-BY-NC-SA-4.0"],
            [LicenceRisk.NON_COMMERCIAL_MIX, LicenceRisk.SHARE_ALIKE],
        ),
    ],
)
def test_what_licences_forbid(licences: list[str], risks: list[LicenceRisk]) -> None:
    datasets = [Dataset(name=f"d{n}", licence=text) for n, text in enumerate(licences)]
    assert [problem.risk for problem in licence_problems(datasets)] == risks
    assert licence_problems(datasets[::-1]) == licence_problems(datasets)


def test_a_forbidden_mix_is_refused_until_it_is_accepted(
    site: LabelledSite, tmp_path: Path
) -> None:
    site.add_case("closed", "hospital")
    site.add_prediction("closed", all_organs())
    assemble(site)
    with pytest.raises(InvalidInput, match=r"hospital.*--accept unknown"):
        release(site, tmp_path / "atlas")
    release(site, tmp_path / "free", datasets=("free", "own"))
    folder = release(site, tmp_path / "atlas", accepted=frozenset({LicenceRisk.UNKNOWN}))
    assert "accepted:\n\n- unknown: hospital" in (folder / "README.md").read_text()


def test_splits_have_the_proportions_of_the_paper() -> None:
    members = [SplitCase(f"case-{n}", f"set-{n % 16}") for n in range(8448)]
    splits = split_cases(members)
    assert Counter(splits.values()) == PAPER_CASES
    assert split_cases(members[::-1]) == splits
    for name in {member.dataset for member in members}:
        counts = Counter(splits[m.case_id] for m in members if m.dataset == name)
        for split, total in PAPER_CASES.items():
            assert abs(counts[split] - total / 16) <= 2


def test_no_patient_is_in_two_splits() -> None:
    members = [SplitCase(f"case-{n}", f"set-{n % 5}", f"p{n % 97}") for n in range(600)]
    splits = split_cases(members)
    for patient in {member.patient for member in members}:
        assert len({splits[m.case_id] for m in members if m.patient == patient}) == 1
    shares = Counter(splits.values())
    for split, total in PAPER_CASES.items():
        assert abs(shares[split] - 600 * total / 8448) <= 10


def test_what_shares_a_mark_is_in_one_split() -> None:
    """Copies of a scan, series of a study: also where each is said to be of another patient, and
    where they chain patients."""
    members = [
        SplitCase(
            f"case-{n}",
            f"set-{n % 7}",
            f"p{n // 2}" if n % 3 else None,
            frozenset({f"scan-{n % 151}", f"study-{n % 200}"} if n % 2 else ()),
        )
        for n in range(600)
    ]
    splits = split_cases(members)
    assert splits.keys() == {member.case_id for member in members}
    groups: dict[str, list[str]] = {}
    for member in members:
        for mark in {*member.shared, f"patient {member.patient or member.case_id}"}:
            groups.setdefault(mark, []).append(member.case_id)
    for same in groups.values():
        assert len({splits[case_id] for case_id in same}) == 1
    assert split_cases(members[::-1]) == splits


def test_patients_come_from_a_table(site: LabelledSite, tmp_path: Path) -> None:
    path = tmp_path / "patients.csv"
    path.write_text("case,patient\ncase-0,A\ncase-3,A\n")
    assert read_patients(path) == {"case-0": "A", "case-3": "A"}
    path.write_text("case,patient\ncase-0,\n")
    with pytest.raises(InvalidInput, match="line 2"):
        read_patients(path)
    with pytest.raises(NotFound, match="table of patients"):
        read_patients(tmp_path / "none.csv")
    with pytest.raises(InvalidInput, match="not released") as refused:
        release(site, tmp_path / "atlas", patients={"nobody": "A"})
    assert "nobody" not in str(refused.value)  # it may be a patient's name
