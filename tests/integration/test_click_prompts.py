"""Click prompts through the review service, against nnInteractive's own server."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from atlas_core.imaging import read_cropped, read_header, read_label, read_volume
from monai_label_clients import clients
from nninteractive_server import RunningNnInteractive, local_session, running_nninteractive
from numpy.typing import NDArray
from review_server import ReviewPlace, RunningReview, make_place, running_review

Mask = NDArray[np.bool_]

POINT = {"kind": "point", "positive": True, "path": [[15, 16, 8]]}
AWAY = {"kind": "point", "positive": False, "path": [[4, 20, 12]]}
BOX = {"kind": "box", "positive": True, "path": [[20, 18, 6], [9, 10, 6]]}
SCRIBBLE = {"kind": "scribble", "positive": False, "path": [[5, 9, 4], [9, 9, 5], [12, 9, 9]]}
LASSO = {"kind": "lasso", "positive": True, "path": [[17, 8, 5], [17, 22, 5], [17, 14, 14]]}
EVERY_KIND = [POINT, AWAY, BOX, SCRIBBLE, LASSO]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> ReviewPlace:
    return make_place(tmp_path_factory.mktemp("prompts"), cases=3, columns=32)


@pytest.fixture(scope="module")
def running(place: ReviewPlace, nninteractive: RunningNnInteractive) -> Iterator[RunningReview]:
    with running_review(place, nninteractive_url=nninteractive.url, insecure=False) as service:
        yield service


@pytest.fixture
def client(running: RunningReview) -> Iterator[httpx.Client]:
    with running.client("ann") as client:
        yield client


@pytest.fixture(scope="module")
def case_ids(running: RunningReview) -> list[str]:
    with running.client("ann") as client:
        return [one["id"] for one in client.get("/api/v1/cases").json()["cases"]]


def ask(client: httpx.Client, case_id: str, prompts: list[dict[str, Any]]) -> httpx.Response:
    return client.post(f"/api/v1/cases/{case_id}/prompts", json={"prompts": prompts})


@pytest.fixture
def mask_of(place: ReviewPlace, tmp_path: Path) -> Callable[..., Mask]:
    def read(client: httpx.Client, case_id: str, prompts: list[dict[str, Any]]) -> Mask:
        answer = ask(client, case_id, prompts)
        assert answer.status_code == 200, answer.text
        path = tmp_path / f"{case_id}.nii.gz"
        path.write_bytes(answer.content)
        grid = read_header(place.store.ct_path(case_id)).geometry
        return np.asarray(read_cropped(path, grid), np.bool_)

    return read


@pytest.fixture(scope="module")
def expected(place: ReviewPlace, nninteractive_model: Path) -> Callable[..., Mask]:
    """What nnInteractive says by itself of the CT as SimpleITK reads it, [k, j, i]."""

    @functools.cache
    def session_of(case_id: str) -> Any:
        session = local_session(nninteractive_model)
        image = np.ascontiguousarray(read_volume(place.store.ct_path(case_id)).voxels.T)
        session.set_image(image[None])
        session.set_target_buffer(np.zeros(image.shape, np.uint8))
        return session

    def give(session: Any, prompt: dict[str, Any]) -> None:
        positive, path = prompt["positive"], np.array(prompt["path"])[:, ::-1]
        if prompt["kind"] == "point":
            session.add_point_interaction(tuple(path[0].tolist()), positive)
        elif prompt["kind"] == "box":
            low, high = path.min(axis=0), path.max(axis=0) + 1
            session.add_bbox_interaction(np.stack([low, high], axis=1).tolist(), positive)
        else:
            drawn = np.zeros(session.original_image_shape[1:], np.uint8)
            _draw(drawn, prompt["kind"], path)
            add = getattr(session, f"add_{prompt['kind']}_interaction")
            add(drawn, positive)

    def expect(case_id: str, prompts: list[dict[str, Any]]) -> Mask:
        session = session_of(case_id)
        session.reset_interactions()
        for prompt in prompts:
            give(session, prompt)
        return np.array(session.target_buffer.T, np.bool_)

    return expect


def _draw(drawn: NDArray[np.uint8], kind: str, path: NDArray[np.int64]) -> None:
    """The same strokes, on the whole volume."""
    from PIL import Image, ImageDraw

    through = next(axis for axis in (0, 1, 2) if len(set(path[:, axis])) == 1)
    sides = [axis for axis in (0, 1, 2) if axis != through]
    picture = Image.new("L", (drawn.shape[sides[1]], drawn.shape[sides[0]]))
    corners = [(int(one[sides[1]]), int(one[sides[0]])) for one in path]
    if kind == "lasso":
        ImageDraw.Draw(picture).polygon(corners, fill=1, outline=1)
    else:
        ImageDraw.Draw(picture).line(corners, fill=1, width=2)
        ImageDraw.Draw(picture).point(corners, fill=1)
    np.moveaxis(drawn, through, 0)[path[0, through]] = np.asarray(picture)


def test_every_kind_says_what_nninteractive_says(
    client: httpx.Client,
    case_ids: list[str],
    mask_of: Callable[..., Mask],
    expected: Callable[..., Mask],
) -> None:
    """One prompt more each time, to the bit; then one fewer, others, and all of them at once."""
    case_id = case_ids[0]
    masks = []
    for count in range(1, len(EVERY_KIND) + 1):
        mask = mask_of(client, case_id, EVERY_KIND[:count])
        assert np.array_equal(mask, expected(case_id, EVERY_KIND[:count])), EVERY_KIND[count - 1]
        assert 0 < mask.sum() < mask.size
        masks.append(mask)
    for one, next_one in itertools.pairwise(masks):
        assert (one != next_one).any()  # each prompt counts
    assert np.array_equal(mask_of(client, case_id, EVERY_KIND[:4]), masks[3])
    assert np.array_equal(mask_of(client, case_id, EVERY_KIND[:2]), masks[1])
    assert np.array_equal(mask_of(client, case_id, [LASSO]), expected(case_id, [LASSO]))
    assert np.array_equal(mask_of(client, case_id, EVERY_KIND), masks[4])


def test_several_people_share_the_places_of_the_server(
    running: RunningReview,
    case_ids: list[str],
    mask_of: Callable[..., Mask],
    expected: Callable[..., Mask],
) -> None:
    """Three people in turns, two places: each gets the shape of their own prompts on their own
    case, and nobody waits for another to leave."""
    wanted = dict(zip(("ann", "bob", "rita"), case_ids, strict=True))

    def work(user: str) -> list[Mask]:
        with running.client(user) as client:
            return [mask_of(client, wanted[user], EVERY_KIND[:count]) for count in (1, 2)]

    with ThreadPoolExecutor() as people:
        both = list(people.map(work, ("ann", "bob")))
    for user, masks in zip((*wanted,), [*both, work("rita")], strict=True):
        for count, mask in enumerate(masks, start=1):
            assert np.array_equal(mask, expected(wanted[user], EVERY_KIND[:count]))


def test_a_place_is_given_back(
    running: RunningReview, nninteractive: RunningNnInteractive, case_ids: list[str]
) -> None:
    from nnInteractive.inference.remote import ServerAtCapacityError
    from nnInteractive.inference.remote import nnInteractiveRemoteInferenceSession as Session

    with running.client("ann") as ann, running.client("bob") as bob:
        for client in (ann, bob):
            assert ask(client, case_ids[0], [POINT]).is_success
        with pytest.raises(ServerAtCapacityError):
            Session(nninteractive.url, api_key="")
        assert ann.delete(f"/api/v1/cases/{case_ids[0]}/prompts").status_code == 204
        with Session(nninteractive.url, api_key=""):  # somebody else's program takes the place
            assert ask(ann, case_ids[1], [POINT]).is_success  # bob's waits longest: it makes room
        for client in (ann, bob):
            for case_id in case_ids[:2]:
                assert client.delete(f"/api/v1/cases/{case_id}/prompts").status_code == 204


@pytest.mark.parametrize(
    "prompts",
    [
        [],
        [{**POINT, "path": [[15, 16, 8], [15, 16, 9]]}],
        [{**POINT, "path": [[15, -1, 8]]}],
        [{**POINT, "path": [[15, 16, 999]]}],
        [{**POINT, "kind": "text"}],
        [{**LASSO, "path": [[1, 1, 1], [2, 2, 2], [3, 3, 3]]}],
        [{**BOX, "path": [[1, 1, 1]]}],
        [{**SCRIBBLE, "path": [[1, 1, 1]] * 5000}],
        [POINT] * 65,
    ],
    ids=str,
)
def test_malformed_prompts_are_refused(
    client: httpx.Client, case_ids: list[str], prompts: list[dict[str, Any]]
) -> None:
    answer = ask(client, case_ids[0], prompts)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_server_that_goes_and_comes_back(
    place: ReviewPlace,
    nninteractive_model: Path,
    case_ids: list[str],
    mask_of: Callable[..., Mask],
    expected: Callable[..., Mask],
) -> None:
    """While it is gone, people are told so; a restarted one is told everything again."""
    with (
        running_nninteractive(nninteractive_model) as server,
        running_review(place, nninteractive_url=server.url) as service,
        service.client("ann") as client,
    ):
        assert ask(client, case_ids[0], [POINT]).is_success
        server.stop()
        answer = ask(client, case_ids[0], [POINT, BOX])
        assert answer.status_code == 503, answer.text
        assert "nnInteractive" in answer.json()["what"]
        assert client.get("/api/v1/queue").is_success
        with running_nninteractive(nninteractive_model, port=server.port):
            mask = mask_of(client, case_ids[0], [POINT, BOX])
            assert np.array_equal(mask, expected(case_ids[0], [POINT, BOX]))


def test_nothing_is_offered_where_none_is_configured(review: RunningReview, tmp_path: Path) -> None:
    with review.client("ann") as client:
        task = client.get("/api/v1/queue").json()["tasks"][0]
        assert client.get(f"/api/v1/tasks/{task['id']}").json()["click_prompts"] is False
        assert ask(client, task["case_id"], [POINT]).status_code == 404
    assert set(clients(review.url, tmp_path / "client", "ann")().info()["models"]) == {
        "pseudo_label"
    }


@pytest.mark.filterwarnings("ignore:'cgi' is deprecated:DeprecationWarning")
def test_monai_labels_client_clicks(
    running: RunningReview, case_ids: list[str], expected: Callable[..., Mask], tmp_path: Path
) -> None:
    """As 3D Slicer's extension asks a model of the type deepgrow."""
    make = clients(running.url, tmp_path / "client", "bob")
    model = make().info()["models"]["nninteractive"]
    assert (model["type"], model["dimension"]) == ("deepgrow", 3)
    clicks = {"foreground": POINT["path"], "background": AWAY["path"], "label": "liver"}
    path, params = make().infer("nninteractive", case_ids[0], clicks)
    assert params["label_names"] == {"liver": 1}
    assert np.array_equal(read_label(Path(path)).voxels == 1, expected(case_ids[0], [POINT, AWAY]))
    for wrong in ({}, {"foreground": [[1]]}, {**clicks, "result_extension": ".seg.nrrd"}):
        with pytest.raises(Exception, match="422"):
            make().infer("nninteractive", case_ids[0], wrong)
