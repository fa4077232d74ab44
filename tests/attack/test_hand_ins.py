"""Somebody with an account writes where they hold nothing: whatever way it comes, it is kept, and
nothing of it comes into force."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from atlas_core.catalog import Catalog
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import write_volume
from review_server import ReviewPlace, RunningReview, make_place, running_review

API = "/api/v1"

HandIn = Callable[[httpx.Client, dict[str, Any], int, bytes], httpx.Response]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningReview]:
    place = make_place(tmp_path_factory.mktemp("hand-ins"), cases=3, columns=32)
    with running_review(place) as service:
        yield service


def by_rest(client: httpx.Client, case: dict[str, Any], task: int, mask: bytes) -> httpx.Response:
    """Within somebody else's task."""
    return _post(client, case, mask, task=task)


def without_a_task(
    client: httpx.Client, case: dict[str, Any], task: int, mask: bytes
) -> httpx.Response:
    return _post(client, case, mask)


def _post(client: httpx.Client, case: dict[str, Any], mask: bytes, **query: int) -> httpx.Response:
    base = liver_in_force(client, case["id"])["id"]
    return client.post(
        f"{API}/cases/{case['id']}/labels",
        params={"organ": "liver", "base": base, **query},
        files={"label": ("mask.nii.gz", io.BytesIO(mask))},
    )


def by_monai_label(
    client: httpx.Client, case: dict[str, Any], task: int, mask: bytes
) -> httpx.Response:
    files = {"label": ("mask.nii.gz", io.BytesIO(mask))}
    return client.put("/datastore/label", params={"image": case["id"]}, files=files)


WAYS: tuple[HandIn, ...] = (by_rest, without_a_task, by_monai_label)


def liver_in_force(client: httpx.Client, case_id: str) -> dict[str, Any]:
    labels = client.get(f"{API}/cases/{case_id}/labels", params={"organ": "liver"}).json()["labels"]
    (found,) = (one for one in labels if one["in_force"])
    return dict(found)


def a_mask(case: dict[str, Any], folder: Path, column: int) -> bytes:
    geometry = VolumeGeometry.from_array(tuple(case["shape"]), np.array(case["affine"]))
    voxels = np.zeros(case["shape"], np.uint8, order="F")
    voxels[column, 5:9, 2:4] = 1
    write_volume(folder / "m.nii.gz", voxels, geometry)
    return (folder / "m.nii.gz").read_bytes()


def labels_of_people(place: ReviewPlace) -> list[tuple[str, str | None]]:
    """What assembly, training and release may take."""
    with Catalog.open(place.catalog_url) as catalog:
        return [
            (case.id, label.annotator)
            for case in catalog.cases()
            for label in catalog.labels(case.id)
            if label.annotator is not None
        ]


@pytest.mark.parametrize("way", WAYS)
def test_a_case_that_another_holds_is_theirs(
    running: RunningReview, tmp_path: Path, way: HandIn
) -> None:
    before = labels_of_people(running.place)
    with running.client("ann") as ann, running.client("bob") as bob:
        task = ann.post(f"{API}/queue/next").json()
        case = ann.get(f"{API}/tasks/{task['id']}").json()["case"]
        column = 4 + WAYS.index(way)
        answer = way(bob, case, task["id"], a_mask(case, tmp_path, column))
        assert answer.status_code == 409, answer.text
        problem = answer.json()
        assert problem["title"] == "Kept as a proposal"
        kept = problem["submitted"]
        assert kept["id"].startswith("proposal-")
        assert not kept["in_force"]
        assert "a reader or a manager" in problem["detail"]
        assert bob.get(kept["url"]).status_code == 200
        assert liver_in_force(ann, case["id"])["author"] is None
        assert labels_of_people(running.place) == before
        looked_at = {"visited": [organ["organ"] for organ in task["organs"]]}
        done = ann.post(f"{API}/tasks/{task['id']}/confirm", json=looked_at).json()
        assert done["state"] == "confirmed"  # her judgement, whatever bob sent
        ended = way(bob, case, task["id"], a_mask(case, tmp_path, column + 9))
        assert ended.status_code == 409
        assert labels_of_people(running.place) == before
        with running.client("rita") as rita:
            rita.post(f"{API}/tasks/{task['id']}/reopen", json={"reason": "again"})


def test_what_was_kept_is_found_and_accepted(running: RunningReview, tmp_path: Path) -> None:
    with (
        running.client("ann") as ann,
        running.client("bob") as bob,
        running.client("admin") as admin,
    ):
        task = ann.post(f"{API}/queue/next").json()
        case = ann.get(f"{API}/tasks/{task['id']}").json()["case"]
        mask = a_mask(case, tmp_path, 20)
        kept = by_rest(bob, case, task["id"], mask).json()["submitted"]
        again = by_rest(bob, case, task["id"], mask).json()["submitted"]
        assert again["id"] == kept["id"]
        assert bob.get(f"{API}/proposals").status_code == 403
        found = admin.get(f"{API}/proposals").json()["proposals"][0]
        assert (found["id"], found["case_id"]) == (kept["id"], case["id"])
        path = f"{API}/cases/{case['id']}/proposals/{kept['id']}/accept"
        over = {"over": liver_in_force(ann, case["id"])["id"]}
        assert bob.post(path, json=over).status_code == 409
        assert admin.post(path, json={"over": "none"}).status_code == 409
        accepted = admin.post(path, json=over)
        assert accepted.status_code == 201, accepted.text
        assert (accepted.json()["author"], accepted.json()["in_force"]) == ("bob", True)
        assert liver_in_force(ann, case["id"])["id"] == accepted.json()["id"]


def test_a_draft_stays_with_its_author_and_a_task_with_its_holder(
    running: RunningReview, tmp_path: Path
) -> None:
    with running.client("ann") as ann, running.client("bob") as bob:
        task = ann.post(f"{API}/queue/next").json()["id"]
        case = ann.get(f"{API}/tasks/{task}").json()["case"]
        before = labels_of_people(running.place), case["labels"]
        draft = a_mask(case, tmp_path, 3)
        assert bob.put(f"{API}/tasks/{task}/draft", content=draft).status_code == 200
        assert ann.get(f"{API}/tasks/{task}/draft").status_code == 404
        ends: dict[str, dict[str, Any]] = {
            "confirm": {},
            "skip": {"reason": "x"},
            "revise": {"labels": {"liver": case["labels"][0]["id"]}},
            "second-reader": {},
            "lease": {},
        }
        for name, body in ends.items():
            assert bob.post(f"{API}/tasks/{task}/{name}", json=body).status_code == 409, name
        judged = {"verdict": "confirmed"}
        assert bob.put(f"{API}/tasks/{task}/organs/liver", json=judged).status_code == 409
        now = ann.get(f"{API}/tasks/{task}").json()
        assert (labels_of_people(running.place), now["case"]["labels"]) == before
        assert (now["state"], now["assignee"]) == ("leased", "ann")


def test_who_asked_for_a_second_reader_has_handed_the_case_over(
    running: RunningReview, tmp_path: Path
) -> None:
    with running.client("ann") as ann, running.client("bob") as bob:
        task = ann.post(f"{API}/queue/next").json()["id"]
        case = ann.get(f"{API}/tasks/{task}").json()["case"]
        ann.post(f"{API}/tasks/{task}/second-reader", json={"note": "?"}).raise_for_status()
        for client in (ann, bob):
            answer = by_rest(client, case, task, a_mask(case, tmp_path, 7))
            assert answer.json()["title"] == "Kept as a proposal"
        with running.client("rita") as rita:
            rita.post(f"{API}/tasks/{task}/lease").raise_for_status()
            answer = by_rest(rita, case, task, a_mask(case, tmp_path, 8))
            assert answer.status_code == 201, answer.text
            assert rita.post(f"{API}/tasks/{task}/confirm", json={}).json()["state"] == "revised"
