"""Every route of the review service against every kind of caller, and what callers may send."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import pytest
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import write_volume
from atlas_review.auth import Role
from review_server import ReviewPlace, RunningReview, make_place, running_review

API: Final = "/api/v1"

PUBLIC: Final = {
    ("post", f"{API}/session"),  # signs in
    ("get", f"{API}/auth/oidc/login"),
    ("get", f"{API}/auth/oidc/callback"),
    ("get", "/auth/"),
    ("post", "/auth/token"),
    ("get", "/healthz"),
    ("get", "/readyz"),
}
NEEDS: Final = {
    ("post", f"{API}/queue"): Role.MANAGER,
    ("get", f"{API}/audit"): Role.MANAGER,
    ("get", f"{API}/proposals"): Role.READER,
    ("post", f"{API}/tasks/{{task_id}}/reopen"): Role.READER,
}
"""Every other route needs an account, of any role."""

RANKS: Final = (Role.ANNOTATOR, Role.READER, Role.MANAGER)

NOWHERE: Final = {
    "case_id": "none_000000000000",
    "task_id": "999999",
    "version_id": "999999",
    "proposal_id": "proposal-999999",
    "organ": "liver",
    "strategy": "attention",
    "model": "pseudo_label",
    "session_id": "x",
    "shape_id": "pseudo",
}
"""What the routes are about does not exist, so that nothing changes."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> ReviewPlace:
    return make_place(tmp_path_factory.mktemp("routes"), cases=5, columns=32)


@pytest.fixture(scope="module")
def running(place: ReviewPlace) -> Iterator[RunningReview]:
    with running_review(place) as service:
        yield service


@pytest.fixture(scope="module")
def spec(running: RunningReview) -> dict[str, Any]:
    with running.client() as client:
        return dict(client.get(f"{API}/openapi.json").json())


def operations(spec: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, found in spec["paths"].items():
        for method, operation in found.items():
            yield method, path, operation


def call(
    client: httpx.Client, method: str, path: str, operation: dict[str, Any], token: str | None
) -> int:
    query = {
        one["name"]: NOWHERE["case_id"] if one["name"] in ("image", "label") else "1"
        for one in operation.get("parameters", [])
        if one["in"] == "query" and one["required"]
    }
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    body = {"json": {}} if method in ("post", "put") else {}
    return client.request(
        method, path.format(**NOWHERE), params=query, headers=headers, **body
    ).status_code


def test_every_route_is_for_whom_the_table_says(
    running: RunningReview, spec: dict[str, Any]
) -> None:
    accounts = running.place.accounts
    tokens = {role: accounts.add_token(f"a-{role.value}", (role,)) for role in RANKS}
    wrong = []
    with running.client() as client:
        for method, path, operation in operations(spec):
            route = (method, path)
            if route == ("delete", f"{API}/session"):  # tokens of machines do not sign out
                continue
            for token in (None, "x" * 43):
                status = call(client, method, path, operation, token)
                if (status == 401) == (route in PUBLIC):
                    wrong.append((route, "a stranger", status))
            for role in RANKS:
                status = call(client, method, path, operation, tokens[role])
                may = RANKS.index(role) >= RANKS.index(NEEDS.get(route, Role.ANNOTATOR))
                hidden = route == ("get", f"{API}/audit") and status == 404
                if (status in (401, 403) or hidden) == may and route not in PUBLIC:
                    wrong.append((route, role.value, status))
    assert wrong == []
    assert set(NEEDS) | PUBLIC <= {(method, path) for method, path, _ in operations(spec)}


def unbounded(spec: dict[str, Any], schema: dict[str, Any], where: str) -> Iterator[str]:
    """Where a text, a list or a mapping may be as long as its sender likes."""
    while "$ref" in schema:
        schema = spec["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    for one in schema.get("anyOf", ()):
        yield from unbounded(spec, one, where)
    kind = schema.get("type")
    file = schema.get("format") == "binary"
    if kind == "string" and not file and not {"maxLength", "enum", "const"} & set(schema):
        yield where
    if kind == "array":
        if "maxItems" not in schema:
            yield f"{where}[]"
        for one in (*schema.get("prefixItems", ()), *filter(None, [schema.get("items")])):
            yield from unbounded(spec, one, f"{where}[]")
    if kind == "object":
        for name, one in schema.get("properties", {}).items():
            yield from unbounded(spec, one, f"{where}.{name}")
        more = schema.get("additionalProperties")
        if more and "maxProperties" not in schema:
            yield f"{where}{{}}"
        if isinstance(more, dict):
            yield from unbounded(spec, more, f"{where}{{}}")


def test_everything_that_is_sent_is_bounded(spec: dict[str, Any]) -> None:
    found = []
    for method, path, operation in operations(spec):
        for one in operation.get("parameters", []):
            found += unbounded(spec, one["schema"], f"{method} {path} {one['name']}")
        for content in operation.get("requestBody", {}).get("content", {}).values():
            found += unbounded(spec, content["schema"], f"{method} {path}")
    assert found == []


@pytest.mark.parametrize(
    "path",
    [
        "/assets/%00",
        "/assets/" + "a" * 300,
        "/assets/" + "a" * 5000,
        "/assets/" + "a/" * 9000,
        "/assets/%ff%fe",
        f"{API}/cases/%00",
        f"{API}/cases?dataset=%00",
        f"{API}/cases?state=a%0ab",
        f"{API}/queue?organ=%00&assignee=%00",
        f"{API}/cases?dataset={'a' * 20_000}",
        "/datastore/image?image=%00",
    ],
)
def test_an_impossible_address_is_refused(running: RunningReview, path: str) -> None:
    with running.client("admin") as client:
        answer = client.get(path)
    assert answer.status_code in (400, 404, 422), answer.text
    assert "ff" in path or answer.status_code != 404
    assert answer.headers["content-type"] == "application/problem+json"


BODIES: Final = {
    "NUL": json.dumps({"flagged": True, "reason": "a\0b"}),
    "half a character": '{"flagged": true, "reason": "\\ud800"}',
    "deep": '{"flagged": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "digits": '{"flagged": ' + "9" * 10_000 + "}",
    "long": json.dumps({"flagged": True, "reason": "a" * 100_000}),
    "no text": b'{"flagged": true, "reason": "\xff\xfe"}',
}


@pytest.mark.parametrize("what", BODIES)
def test_an_impossible_body_is_refused(running: RunningReview, what: str) -> None:
    kind = {"Content-Type": "application/json"}
    with running.client("admin") as client:
        case_id = client.get(f"{API}/cases").json()["cases"][0]["id"]
        answer = client.put(f"{API}/cases/{case_id}/flag", content=BODIES[what], headers=kind)
        assert answer.status_code in (400, 422), answer.text
        assert not client.get(f"{API}/cases/{case_id}").json()["flagged"]
        params = {"params": BODIES[what]} if isinstance(BODIES[what], str) else {"params": "["}
        files = {"label": ("m.nii.gz", b"x")}
        sent = client.put("/datastore/label", params={"image": case_id}, data=params, files=files)
        assert sent.status_code in (400, 422), sent.text
        draft = client.put(
            f"{API}/tasks/1/draft", content=b"x", headers={"X-Base": "[" * 9000 + "]"}
        )
        assert draft.status_code == 422


def test_of_many_uploads_at_once_every_one_is_kept(running: RunningReview, tmp_path: Path) -> None:
    """From one base: one comes into force, the others are proposals."""
    token = running.place.accounts.add_token("uploads", (Role.READER,))
    with running.client() as client:
        client.headers["Authorization"] = f"Bearer {token}"
        case = client.get(f"{API}/cases").json()["cases"][0]
        detail = client.get(f"{API}/cases/{case['id']}").json()
        base = next(one["id"] for one in detail["labels"] if one["organ"] == "liver")
        geometry = VolumeGeometry.from_array(tuple(detail["shape"]), np.array(detail["affine"]))

        def upload(number: int) -> httpx.Response:
            mask = np.zeros(detail["shape"], np.uint8, order="F")
            mask.flat[number : number + 3] = 1
            path = tmp_path / f"{number}.nii.gz"
            write_volume(path, mask, geometry)
            return client.post(
                f"{API}/cases/{case['id']}/labels",
                params={"organ": "liver", "base": base},
                files={"label": ("m.nii.gz", io.BytesIO(path.read_bytes()))},
            )

        with ThreadPoolExecutor(50) as pool:
            answers = list(pool.map(upload, range(150)))
        assert sorted({answer.status_code for answer in answers}) == [201, 409]
        kept = [answer.json().get("submitted") or answer.json() for answer in answers]
        assert len({one["id"] for one in kept}) == 150
        listed = client.get(f"{API}/cases/{case['id']}/labels").json()["labels"]
        assert {one["id"] for one in kept} <= {one["id"] for one in listed}
        assert sum(one["in_force"] for one in listed if one["organ"] == "liver") == 1
        for one in kept:
            assert client.get(one["url"]).status_code == 200


def test_downloads_of_volumes_are_on_record(running: RunningReview) -> None:
    with running.client("ann") as ann, running.client("admin") as admin:
        sample = ann.post("/activelearning/attention", json={}).json()["id"]
        case_id = sample.partition("~")[0]
        detail = ann.get(f"{API}/cases/{case_id}").json()
        version = detail["labels"][0]["url"]
        paths = [
            detail["ct"]["url"],
            detail["label_map"]["url"],
            detail["attention_map"]["url"],
            version,
            f"{API}/cases/{case_id}/download.zip",
            f"/datastore/label?label={case_id}",
        ]
        for path in paths:
            assert ann.get(path).status_code == 200, path
        with running.client() as slicer:  # knows the id and has no token
            image = slicer.get("/datastore/image", params={"image": sample})
            assert image.status_code == 200
        infer = {"image": sample}
        assert ann.post("/infer/pseudo_label", params=infer, json={}).status_code == 200
        etag = ann.get(detail["ct"]["url"]).headers["etag"]
        again = ann.get(detail["ct"]["url"], headers={"If-None-Match": etag})
        assert again.status_code == 304  # nothing left the house
        entries = admin.get(f"{API}/audit", params={"limit": 20}).json()["entries"]
    found = [one for one in entries if one["action"] == "download"][: len(paths) + 3]
    assert len(found) == len(paths) + 3
    assert {(one["who"], one["case_id"]) for one in found} == {("ann", case_id)}
