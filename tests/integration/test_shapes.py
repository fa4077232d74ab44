"""What each model said of an organ, and taking it: over real HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from atlas_core.imaging import read_cropped, read_header
from numpy.typing import NDArray
from review_server import MODELS, RunningReview, make_place, running_review

ORGAN = "stomach"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningReview]:
    place = make_place(tmp_path_factory.mktemp("shapes"), cases=2, columns=32)
    with running_review(place) as service:
        yield service


@pytest.fixture
def client(running: RunningReview) -> Iterator[httpx.Client]:
    with running.client("ann") as client:
        yield client


@pytest.fixture
def case(running: RunningReview, client: httpx.Client) -> dict[str, Any]:
    """The case that ann holds."""
    task = client.post("/api/v1/queue/next").raise_for_status().json()
    found = client.get(f"/api/v1/cases/{task['case_id']}").raise_for_status().json()
    return {**found, "task": task["id"]}


def shapes_of(client: httpx.Client, case: dict[str, Any]) -> list[dict[str, Any]]:
    answer = client.get(f"/api/v1/cases/{case['id']}/shapes", params={"organ": ORGAN})
    found: list[dict[str, Any]] = answer.raise_for_status().json()["shapes"]
    return found


def member(shapes: list[dict[str, Any]], number: int) -> dict[str, Any]:
    (one,) = [shape for shape in shapes if shape["model"].startswith(MODELS[number].name)]
    return one


def mask_of(
    running: RunningReview, client: httpx.Client, case: dict[str, Any], url: str, folder: Path
) -> NDArray[np.bool_]:
    content = client.get(url).raise_for_status().content
    (folder / "mask.nii.gz").write_bytes(content)
    grid = read_header(running.place.store.ct_path(case["id"])).geometry
    return np.asarray(read_cropped(folder / "mask.nii.gz", grid), np.bool_)


def region_of(client: httpx.Client, case: dict[str, Any]) -> tuple[list[int], list[int]]:
    answer = client.get(f"/api/v1/cases/{case['id']}/regions", params={"organ": ORGAN})
    first, last = answer.raise_for_status().json()["regions"][0]["box_ijk"]
    return first, last


def test_every_shape_of_an_organ_is_listed_and_fetched(
    running: RunningReview, client: httpx.Client, case: dict[str, Any], tmp_path: Path
) -> None:
    shapes = shapes_of(client, case)
    assert [shape["kind"] for shape in shapes] == ["pseudo", "member", "member"]
    assert shapes[0]["in_force"] and shapes[0]["volume_ml"] > 0
    pseudo, right, same = (
        mask_of(running, client, case, one["url"], tmp_path)
        for one in (shapes[0], member(shapes, 0), member(shapes, 1))
    )
    assert np.array_equal(pseudo, same)
    assert (right & ~pseudo).any() and not (pseudo & ~right).any()
    first, last = region_of(client, case)
    box = ",".join(map(str, [*first, *last]))
    within = mask_of(running, client, case, f"{member(shapes, 0)['url']}&box={box}", tmp_path)
    inside = tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))
    assert np.array_equal(within[inside], right[inside])
    assert within.sum() == right[inside].sum()


def test_a_shape_is_taken_in_a_region_and_elsewhere_the_label_stays(
    running: RunningReview, client: httpx.Client, case: dict[str, Any], tmp_path: Path
) -> None:
    shapes = shapes_of(client, case)
    right, before = (
        mask_of(running, client, case, one["url"], tmp_path)
        for one in (member(shapes, 0), shapes[0])
    )
    first, last = region_of(client, case)
    last = [(a + b) // 2 for a, b in zip(first, last, strict=True)]  # a part of what differs
    body = {
        "organ": ORGAN,
        "base": shapes[0]["id"].removeprefix("label-"),
        "box_ijk": [first, last],
        "task": case["task"],
    }
    url = f"/api/v1/cases/{case['id']}/shapes/{member(shapes, 0)['id']}/take"
    label = client.post(url, json=body).raise_for_status().json()
    assert label["in_force"] and label["source"] == "revised" and label["author"] == "ann"
    expected = before.copy()
    inside = tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))
    expected[inside] = right[inside]
    assert not np.array_equal(expected, before) and not np.array_equal(expected, right)
    taken = mask_of(running, client, case, shapes_of(client, case)[0]["url"], tmp_path)
    assert np.array_equal(taken, expected)
    # The whole shape, over the version that there is now.
    body = {"organ": ORGAN, "base": label["id"], "task": case["task"]}
    client.post(url, json=body).raise_for_status()
    kinds = [(one["kind"], one["in_force"]) for one in shapes_of(client, case)]
    assert kinds[:3] == [("revised", True), ("revised", False), ("pseudo", False)]
    whole = mask_of(running, client, case, shapes_of(client, case)[0]["url"], tmp_path)
    assert np.array_equal(whole, right)


def test_who_does_not_hold_the_case_only_proposes(
    running: RunningReview, case: dict[str, Any]
) -> None:
    with running.client("bob") as bob:
        shapes = shapes_of(bob, case)
        url = f"/api/v1/cases/{case['id']}/shapes/{member(shapes, 0)['id']}/take"
        base = next(one for one in shapes if one["in_force"])["id"].removeprefix("label-")
        body = {"organ": ORGAN, "base": base, "box_ijk": [[0, 0, 0], [1, 1, 1]]}
        answer = bob.post(url, json=body)
        assert answer.status_code == 409
        assert answer.json()["title"] == "Kept as a proposal"
        assert "proposal" in [one["kind"] for one in shapes_of(bob, case)]


@pytest.mark.parametrize(
    "change", [{"box_ijk": [[0, 0, 0], [999, 1, 1]]}, {"organ": "heart"}, {"base": "liver"}]
)
def test_what_cannot_be_taken_is_refused(
    client: httpx.Client, case: dict[str, Any], change: dict[str, Any]
) -> None:
    shapes = shapes_of(client, case)
    base = next(one for one in shapes if one["in_force"])["id"].removeprefix("label-")
    body = {"organ": ORGAN, "base": base, **change}
    url = f"/api/v1/cases/{case['id']}/shapes/{member(shapes, 0)['id']}/take"
    assert client.post(url, json=body).status_code in (404, 422)
