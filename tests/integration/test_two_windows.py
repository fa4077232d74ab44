"""Two windows of one person on one case, drafts that are kept, and comments: over real HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from review_server import RunningReview, make_place, running_review

API = "/api/v1"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningReview]:
    place = make_place(tmp_path_factory.mktemp("windows"), cases=4, columns=32)
    with running_review(place) as service:
        yield service


@pytest.fixture
def ann(running: RunningReview) -> Iterator[httpx.Client]:
    with running.client("ann") as client:
        yield client


def ask(client: httpx.Client, task: int, page: str, **more: Any) -> httpx.Response:
    return client.post(f"{API}/tasks/{task}/lease", json={"page": page, **more})


def save(client: httpx.Client, task: int, page: str, content: bytes) -> str:
    url = f"{API}/tasks/{task}/draft"
    answer = client.put(url, content=content, headers={"X-Page": page}).raise_for_status()
    return str(answer.json()["sha256"])


def label_map(client: httpx.Client, task: int) -> bytes:
    """What somebody could have drawn."""
    case = client.get(f"{API}/tasks/{task}").raise_for_status().json()["case"]
    url = case["label_map"]["url"]
    return client.get(url).raise_for_status().content


def drafts_of(client: httpx.Client, task: int) -> list[dict[str, Any]]:
    answer = client.get(f"{API}/tasks/{task}/drafts").raise_for_status()
    found: list[dict[str, Any]] = answer.json()["drafts"]
    return found


def test_the_second_window_is_told_and_takes_over_and_both_drawings_stay(
    running: RunningReview, ann: httpx.Client
) -> None:
    task = ann.post(f"{API}/queue/next").raise_for_status().json()["id"]
    drawing = label_map(ann, task)
    ask(ann, task, "first").raise_for_status()
    mine = save(ann, task, "first", drawing)
    with running.client("ann") as elsewhere:
        told = ask(elsewhere, task, "second")
        assert (told.status_code, told.json()["title"]) == (409, "Open elsewhere")
        ask(elsewhere, task, "second", take_over=True).raise_for_status()
        ask(elsewhere, task, "second").raise_for_status()  # renewed
        save(elsewhere, task, "second", drawing)
    assert ask(ann, task, "first").json()["title"] == "Open elsewhere"
    ann.post(f"{API}/tasks/{task}/lease").raise_for_status()  # a program that names no window
    save(ann, task, "first", drawing)  # strokes that were on their way are not lost either
    assert [one["page"] for one in drafts_of(ann, task)] == ["second", "first"]
    first = ann.get(drafts_of(ann, task)[1]["url"]).raise_for_status()
    assert first.headers["ETag"].strip('"') == mine
    assert ann.get(f"{API}/tasks/{task}/draft", params={"page": "third"}).status_code == 404
    ann.post(f"{API}/tasks/{task}/confirm", json={"visited": ["liver"]}).raise_for_status()
    assert drafts_of(ann, task) == []
    assert not [p for p in running.place.store.root.rglob("*draft*") if p.is_file()]


def test_drafts_of_many_windows_are_bounded(ann: httpx.Client) -> None:
    task = ann.post(f"{API}/queue/next").raise_for_status().json()["id"]
    drawing = label_map(ann, task)
    for number in range(6):
        save(ann, task, f"window{number}", drawing)
    pages = {one["page"] for one in drafts_of(ann, task)}
    assert pages == {"window5", "window4", "window3", "window2"}


def test_a_skipped_case_says_how_long_its_drawing_is_kept(ann: httpx.Client) -> None:
    task = ann.post(f"{API}/queue/next").raise_for_status().json()["id"]
    save(ann, task, "window", label_map(ann, task))
    url = f"{API}/tasks/{task}"
    ended = ann.post(f"{url}/skip", json={"reason": "later"}).raise_for_status().json()
    assert ended["draft_kept_until"] > ended["updated_at"]
    assert set(ended["unjudged"]) == {one["organ"] for one in ended["organs"]}
    assert "window" in {one["page"] for one in drafts_of(ann, task)}
    again = ann.post(f"{url}/take-back").raise_for_status().json()
    assert (again["state"], again["assignee"]) == ("leased", "ann")
    assert ann.get(f"{url}/draft").status_code == 200


def test_readers_talk_about_a_case(running: RunningReview, ann: httpx.Client) -> None:
    task = ann.post(f"{API}/queue/next").raise_for_status().json()
    url = f"{API}/cases/{task['case_id']}/comments"
    body = {"note": "is this a cyst?"}
    ann.post(f"{API}/tasks/{task['id']}/second-reader", json=body).raise_for_status()
    with running.client("rita") as rita:
        answer = {"text": "yes, leave it out", "organ": "liver", "voxel_ijk": [1, 2, 3]}
        rita.post(url, json=answer).raise_for_status()
    thread = ann.get(url).raise_for_status().json()["comments"]
    assert [(one["author"], one["text"]) for one in thread] == [
        ("ann", "is this a cyst?"),
        ("rita", "yes, leave it out"),
    ]
    assert (thread[1]["organ"], thread[1]["voxel_ijk"]) == ("liver", [1, 2, 3])
    for wrong in (
        {"text": " "},
        {"text": "x" * 2001},
        {"text": "x", "organ": "heart"},
        {"text": "x", "voxel_ijk": [0, 0, 9999]},
    ):
        assert ann.post(url, json=wrong).status_code == 422
    assert len(ann.get(url).json()["comments"]) == 2
