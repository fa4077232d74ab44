"""Hand-ins and leases of MONAI Label clients that have no page, by the requests of 3D Slicer's
extension. One service for all: every test works with accounts and cases of its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import sqlalchemy as sa
from atlas_core.catalog import Catalog, tables
from atlas_core.imaging import (
    NrrdSegment,
    Volume,
    read_label,
    read_segments,
    write_nrrd,
    write_volume,
)
from atlas_core.records import LabelSource
from atlas_core.review import LabelVersions, RevisionQueue, TaskFilter, TaskState
from atlas_review.auth import Role
from monai_label_clients import MakeClient, clients, monailabel, shaved
from numpy.typing import NDArray
from review_server import PASSWORD, RunningReview, make_place, running_review

pytestmark = pytest.mark.filterwarnings("ignore:'cgi' is deprecated:DeprecationWarning")

sitk = pytest.importorskip("SimpleITK", reason="NO SIMPLEITK: make setup-dev")

ORIGIN = "https://viewer.example.org"
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningReview]:
    place = make_place(tmp_path_factory.mktemp("monai"), cases=24, columns=32)
    with running_review(place, cors_origins=ORIGIN) as service:
        yield service


def new_user(running: RunningReview) -> str:
    """An annotator who holds nothing yet."""
    name = f"annotator{next(NUMBERS)}"
    running.place.accounts.add_user(name, PASSWORD, (Role.ANNOTATOR,))
    return name


def case_of(sample: dict[str, Any]) -> str:
    return str(sample["name"].rpartition("_")[0])


def all_names(names: list[str]) -> list[dict[str, Any]]:
    """What 3D Slicer's extension sends: a segment for every label of /info, drawn or not."""
    return [{"name": name, "idx": k} for k, name in enumerate(names, start=1)]


def drawn_alone(
    make: MakeClient, sample: dict[str, Any], folder: Path, organ: str
) -> tuple[Path, list[str]]:
    """A label map with nothing but one organ, less a slice, and the names of all its segments."""
    path, _ = make().infer("pseudo_label", sample["id"], {})
    names = list(make().info()["labels"])
    label = read_label(Path(path))
    value = names.index(organ) + 1
    write_volume(folder / "alone.nii.gz", shaved(label.voxels == value) * value, label.geometry)
    return folder / "alone.nii.gz", names


def test_empty_segments_of_organs_that_nobody_touched_change_nothing(
    running: RunningReview, tmp_path: Path
) -> None:
    make = clients(running.url, tmp_path / "client", new_user(running))
    sample = make().next_sample("attention", {})
    drawn, names = drawn_alone(make, sample, tmp_path, "liver")
    with Catalog.open(running.place.catalog_url) as catalog:
        before = LabelVersions(catalog).in_force(case_of(sample))
    info = {"label_info": all_names(names), "model": "pseudo_label"}
    saved = make().save_label(sample["id"], str(drawn), "", info)
    present = {organ for organ, version in before.items() if version.voxels}
    assert set(saved["versions"]) == {"liver"}
    assert set(saved["left_as_it_is"]) == present - {"liver"}
    assert saved["ended"]
    with Catalog.open(running.place.catalog_url) as catalog:
        after = LabelVersions(catalog).in_force(case_of(sample))
        task = RevisionQueue(catalog).page(TaskFilter(case_id=case_of(sample)), 0, 1)[1][0]
    assert {o: v for o, v in after.items() if o != "liver"} == {
        o: v for o, v in before.items() if o != "liver"
    }
    judged = {one.organ for one in task.organs if one.verdict is not None}
    assert judged == {"liver"}


def test_nothing_but_empty_segments_confirms_nothing(
    running: RunningReview, tmp_path: Path
) -> None:
    make = clients(running.url, tmp_path / "client", new_user(running))
    sample = make().next_sample("attention", {})
    drawn, names = drawn_alone(make, sample, tmp_path, "liver")
    label = read_label(drawn)
    write_volume(drawn, np.zeros_like(label.voxels), label.geometry)
    info = {"label_info": all_names(names)}
    with pytest.raises(monailabel.client.MONAILabelClientException, match="no organ was changed"):
        make().save_label(sample["id"], str(drawn), "final", info)
    assert make().next_sample("attention", {})["name"] == sample["name"]  # it is still open


def test_an_organ_is_emptied_by_a_client_that_says_so(
    running: RunningReview, tmp_path: Path
) -> None:
    make = clients(running.url, tmp_path / "client", new_user(running))
    sample = make().next_sample("attention", {})
    drawn, names = drawn_alone(make, sample, tmp_path, "liver")
    refused = monailabel.client.MONAILabelClientException
    info = {"label_info": all_names(names), "emptied": ["liver"]}
    with pytest.raises(refused, match="has voxels"):
        make().save_label(sample["id"], str(drawn), "final", info)
    info["emptied"] = ["pancreas"]
    saved = make().save_label(sample["id"], str(drawn), "final", info)
    assert set(saved["versions"]) == {"liver", "pancreas"}
    with Catalog.open(running.place.catalog_url) as catalog:
        assert LabelVersions(catalog).in_force(case_of(sample))["pancreas"].voxels == 0


def held_until(running: RunningReview, user: str) -> datetime:
    with Catalog.open(running.place.catalog_url) as catalog:
        _, tasks = RevisionQueue(catalog).page(
            TaskFilter(state=TaskState.LEASED, assignee=user), 0, 2
        )
    (task,) = tasks
    assert task.lease_expires_at is not None
    return task.lease_expires_at


def let_leases_end(running: RunningReview, user: str) -> None:
    with (
        Catalog.open(running.place.catalog_url) as catalog,
        catalog.transaction(write=True) as connection,
    ):
        ended = datetime.now(UTC) - timedelta(seconds=1)
        mine = tables.revision_tasks.c.assignee == user
        pending = tables.revision_tasks.c.lease_expires_at.is_not(None)
        query = sa.update(tables.revision_tasks).where(mine, pending)
        connection.execute(query.values(lease_expires_at=ended))


def test_the_lease_of_a_client_without_a_page_lasts_and_every_call_renews_it(
    running: RunningReview, tmp_path: Path
) -> None:
    ann = new_user(running)
    make = clients(running.url, tmp_path / "client", ann)
    sample = make().next_sample("attention", {})
    until = held_until(running, ann)
    assert until > datetime.now(UTC) + timedelta(hours=7)
    make().infer("pseudo_label", sample["id"], {})
    renewed = held_until(running, ann)
    assert renewed > until
    image = {"image": sample["id"]}
    httpx.get(f"{running.url}/datastore/image", params=image, trust_env=False).raise_for_status()
    assert held_until(running, ann) > renewed


def test_a_second_next_sample_is_the_open_case_or_gives_it_back(
    running: RunningReview, tmp_path: Path
) -> None:
    ann = clients(running.url, tmp_path / "ann", new_user(running))
    bob = clients(running.url, tmp_path / "bob", new_user(running))
    sample = ann().next_sample("attention", {})
    assert ann().next_sample("attention", {})["name"] == sample["name"]
    another = ann().next_sample("attention", {"give_back": True})
    assert another["name"] != sample["name"]
    assert bob().next_sample("attention", {})["name"] == sample["name"]


def test_a_lease_that_ran_out_harms_nobody_until_the_case_has_gone_to_somebody_else(
    running: RunningReview, tmp_path: Path
) -> None:
    ann_name, bob_name = new_user(running), new_user(running)
    ann = clients(running.url, tmp_path / "ann", ann_name)
    bob = clients(running.url, tmp_path / "bob", bob_name)
    first = ann().next_sample("attention", {})
    drawn, names = drawn_alone(ann, first, tmp_path, "liver")
    info = {"label_info": all_names(names)}
    let_leases_end(running, ann_name)
    assert ann().save_label(first["id"], str(drawn), "final", info)["ended"]
    second = ann().next_sample("attention", {})
    drawn, names = drawn_alone(ann, second, tmp_path, "liver")
    let_leases_end(running, ann_name)
    assert bob().next_sample("attention", {})["name"] == second["name"]
    with pytest.raises(monailabel.client.MONAILabelClientException, match="kept"):
        ann().save_label(second["id"], str(drawn), "final", info)
    with Catalog.open(running.place.catalog_url) as catalog:
        (proposal,) = LabelVersions(catalog).proposals(0, 9)[1]
    assert (proposal.case_id, proposal.author) == (case_of(second), ann_name)
    path, _ = ann().infer("pseudo_label", second["id"], {})
    with pytest.raises(monailabel.client.MONAILabelClientException, match=f"held by {bob_name}"):
        ann().save_label(second["id"], path, "final", info)


def a_case(running: RunningReview, folder: Path) -> tuple[MakeClient, dict[str, Any], Volume]:
    """A case that a new annotator holds, and its label map with a slice less of the liver."""
    make = clients(running.url, folder / "client", new_user(running))
    sample = make().next_sample("attention", {})
    path, result = make().infer("pseudo_label", sample["id"], {})
    label = read_label(Path(path))
    value = result["label_names"]["liver"]
    liver = label.voxels == value
    voxels = np.where(liver, shaved(liver) * value, label.voxels).astype(np.uint8)
    return make, sample, Volume(np.asfortranarray(voxels), label.geometry)


def revised_liver(running: RunningReview, sample: dict[str, Any]) -> NDArray[np.uint8]:
    with Catalog.open(running.place.catalog_url) as catalog:
        version = LabelVersions(catalog).in_force(case_of(sample))["liver"]
    assert version.source is LabelSource.REVISED
    return np.asarray(read_label(running.place.store.path(version.path)).voxels)


@pytest.mark.parametrize("ending", [".nrrd", ".seg.nrrd", ".mha"])
def test_what_itk_and_slicer_write_is_taken(
    running: RunningReview, tmp_path: Path, ending: str
) -> None:
    make, sample, edited = a_case(running, tmp_path)
    names = make().info()["labels"]
    path = tmp_path / f"label{ending}"
    shuffled = edited.voxels
    if ending == ".mha":
        image = sitk.GetImageFromArray(edited.voxels.T)
        affine = edited.geometry.matrix * np.array([-1, -1, 1, 1])[:, None]  # LPS
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
        image.SetOrigin(affine[:3, 3].tolist())
        sitk.WriteImage(image, str(path), useCompression=True)
    elif ending == ".nrrd":
        write_nrrd(path, edited)
    else:  # its own values count, not the order of the list beside it
        shuffled = np.where(edited.voxels > 0, 50 + edited.voxels, 0).astype(np.uint8, order="F")
        segments = [NrrdSegment(name, 51 + k, "#808080") for k, name in enumerate(names)]
        write_nrrd(path, Volume(shuffled, edited.geometry), segments)
    info = {"label_info": all_names(names)}
    saved = make().save_label(sample["id"], str(path), "", info)
    assert set(saved["versions"]) == {"liver"}
    liver = names.index("liver") + 1
    assert np.array_equal(revised_liver(running, sample), edited.voxels == liver)


def test_a_label_cropped_to_its_extent_lies_where_its_header_says(
    running: RunningReview, tmp_path: Path
) -> None:
    make, sample, edited = a_case(running, tmp_path)
    where = np.argwhere(edited.voxels)
    low, high = where.min(axis=0), where.max(axis=0) + 1
    box = np.asfortranarray(edited.voxels[tuple(map(slice, low, high))])
    grid = edited.geometry.cropped(tuple(map(int, low)), box.shape)
    write_volume(tmp_path / "box.nii.gz", box, grid)
    saved = make().save_label(sample["id"], str(tmp_path / "box.nii.gz"))
    assert set(saved["versions"]) == {"liver"}
    liver = make().info()["labels"].index("liver") + 1
    assert np.array_equal(revised_liver(running, sample), edited.voxels == liver)


def test_segments_are_recognised_however_their_names_are_written(
    running: RunningReview, tmp_path: Path
) -> None:
    make, sample, edited = a_case(running, tmp_path)
    names = make().info()["labels"]
    path = tmp_path / "label.nii.gz"
    write_volume(path, edited.voxels, edited.geometry)
    titles = [name.replace("_", " ").title() for name in names]
    # The extension counts its own segment "background", which it skips.
    info = {"label_info": [{"name": name, "idx": k} for k, name in enumerate(titles, start=2)]}
    info["label_info"].append({"name": "background", "idx": 99})
    saved = make().save_label(sample["id"], str(path), "", info)
    assert set(saved["versions"]) == {"liver"}


@pytest.mark.parametrize("ending", [".nrrd", ".seg.nrrd"])
def test_a_client_gets_the_form_that_it_asks_for(
    running: RunningReview, tmp_path: Path, ending: str
) -> None:
    make = clients(running.url, tmp_path / "client", new_user(running))
    sample = make().next_sample("attention", {})
    path, _ = make().infer("pseudo_label", sample["id"], {})
    wanted = {"result_extension": ending, "result_dtype": "uint16", "result_compress": False}
    other, result = make().infer("pseudo_label", sample["id"], wanted)
    assert other.endswith(ending)
    image = sitk.ReadImage(other)  # as 3D Slicer does, by ITK
    expected = read_label(Path(path))
    assert image.GetPixelID() == sitk.sitkUInt16
    assert np.array_equal(sitk.GetArrayFromImage(image).T, expected.voxels)
    assert read_label(Path(other)).geometry.same_grid(expected.geometry)
    assert b"encoding: raw" in Path(other).read_bytes()[:4096]
    if ending == ".seg.nrrd":
        assert dict(read_segments(Path(other))) == result["label_names"]
    with pytest.raises(monailabel.client.MONAILabelClientException, match="not offered"):
        make().infer("pseudo_label", sample["id"], {"result_extension": ".mgz"})


def test_volumes_of_ones_own_are_not_offered_whatever_their_size(
    running: RunningReview, tmp_path: Path
) -> None:
    make = clients(running.url, tmp_path / "client", new_user(running))
    volume = tmp_path / "ct.nii.gz"
    volume.write_bytes(bytes(3 << 20))  # more than any request that brings no volume may have
    refused = monailabel.client.MONAILabelClientException
    with pytest.raises(refused, match=r"405.*not segmented here"):
        make().create_session(str(volume))
    with pytest.raises(refused, match=r"405.*not uploaded here"):
        make().upload_image(str(volume), "a_ct")


def test_only_configured_origins_may_call_and_without_cookies(running: RunningReview) -> None:
    asked = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    asked["Access-Control-Request-Headers"] = "authorization,content-type"
    url = f"{running.url}/infer/pseudo_label"
    allowed = httpx.options(url, headers=asked, trust_env=False)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    assert "access-control-allow-credentials" not in allowed.headers
    refused = httpx.options(
        url, headers={**asked, "Origin": "https://elsewhere.example.org"}, trust_env=False
    )
    assert "access-control-allow-origin" not in refused.headers
