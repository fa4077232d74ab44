"""The review service over a socket: who may do what, what is stored, what is refused."""

from __future__ import annotations

import gzip
import io
import json
import re
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from atlas_core.catalog import Catalog, extend_organs
from atlas_core.errors import Unavailable
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import (
    read_cropped,
    read_header,
    read_label,
    read_stored,
    write_volume,
)
from atlas_core.organs import ABDOMEN_ATLAS, read_scheme
from atlas_core.store import CaseStore
from atlas_flows.doctor import surroundings
from atlas_flows.settings import Places
from atlas_review.auth.sign_in_cache import CACHED_S
from numpy.typing import NDArray
from PIL import Image
from ports import free_port
from reference_assembly import Candidate, assemble
from review_server import PASSWORD, ReviewPlace, RunningReview, make_place, running_review

API = "/api/v1"


@pytest.fixture(scope="module")
def ann(review: RunningReview) -> Iterator[httpx.Client]:
    with review.client("ann") as client:
        yield client


@pytest.fixture
def case(ann: httpx.Client) -> dict[str, Any]:
    """The case with an original spleen."""
    cases = ann.get(f"{API}/cases", params={"dataset": "Phantoms"}).json()["cases"]
    details = [ann.get(f"{API}/cases/{one['id']}").json() for one in cases]
    found: dict[str, Any] = next(
        one for one in details if "original" in {label["source"] for label in one["labels"]}
    )
    return found


def label_of(case: dict[str, Any], organ: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in case["labels"] if one["organ"] == organ)
    return found


def geometry_of(case: dict[str, Any]) -> VolumeGeometry:
    return VolumeGeometry.from_array(tuple(case["shape"]), np.array(case["affine"]))


def nifti(
    folder: Path, voxels: NDArray[Any], geometry: VolumeGeometry, name: str = "m.nii.gz"
) -> bytes:
    write_volume(folder / name, np.asfortranarray(voxels), geometry)
    return (folder / name).read_bytes()


def hand_in(
    client: httpx.Client, case_id: str, content: bytes, *, name: str = "mask.nii.gz", **query: Any
) -> httpx.Response:
    files = {"label": (name, content, "application/gzip")}
    return client.post(f"{API}/cases/{case_id}/labels", params=query, files=files)


def take(client: httpx.Client, case: dict[str, Any]) -> int:
    """Lease the case; the id of its task."""
    cases = client.get(f"{API}/cases", params={"limit": 500}).json()["cases"]
    task = next(one["task_id"] for one in cases if one["id"] == case["id"])
    client.post(f"{API}/tasks/{task}/lease").raise_for_status()
    return int(task)


def stored(review: RunningReview) -> tuple[set[str], int]:
    """Every file of the store except derived ones, and the number of label versions."""
    root = review.place.store.root
    files = {
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file() and "derived" not in path.parts
    }
    with Catalog.open(review.place.catalog_url) as catalog:
        return files, sum(len(catalog.labels(one.id)) for one in catalog.cases())


# Who may do what


@pytest.mark.parametrize(
    "path", ["/session", "/queue", "/cases", "/organs", "/statistics", "/audit", "/tasks/1"]
)
def test_nothing_is_shown_to_strangers(review: RunningReview, path: str) -> None:
    with review.client() as stranger:
        answer = stranger.get(f"{API}{path}")
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["auth"] == {"local": True, "oidc": False}


def test_writing_needs_the_token_of_the_page(review: RunningReview) -> None:
    with review.client("ann") as client:
        del client.headers["X-CSRF-Token"]
        assert client.get(f"{API}/queue").status_code == 200
        assert client.post(f"{API}/queue/next").status_code == 403
        client.headers["X-CSRF-Token"] = "guessed"
        assert client.post(f"{API}/queue/next").status_code == 403


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(review: RunningReview) -> None:
    with review.client() as client:
        answer = client.post(f"{API}/session", json={"username": "ann", "password": PASSWORD})
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie


def test_signing_out_ends_the_session_at_once(review: RunningReview) -> None:
    with review.client("ann") as client:
        cookie = client.cookies["atlasloop_session"]
        assert client.delete(f"{API}/session").status_code == 204
        client.cookies.set("atlasloop_session", cookie)
        assert client.get(f"{API}/session").status_code == 401


def test_a_bearer_token_is_revoked_or_said_to_be_no_sign_in(review: RunningReview) -> None:
    from atlas_review.auth import Role

    with review.client() as client:
        form = {"username": "ann", "password": PASSWORD}
        token = client.post("/auth/token", data=form).json()["access_token"]
        client.headers["Authorization"] = f"Bearer {token}"
        assert client.get(f"{API}/session").json()["user"] == "ann"
        assert client.delete(f"{API}/session").status_code == 204
        assert client.get(f"{API}/session").status_code == 401
        machine = review.place.accounts.add_token("robot", (Role.MANAGER,))
        client.headers["Authorization"] = f"Bearer {machine}"
        refused = client.delete(f"{API}/session")
        assert refused.status_code == 403
        assert "remove NAME" in refused.json()["detail"]
        assert client.get(f"{API}/session").status_code == 200


def test_failed_sign_ins_are_on_record_without_what_was_typed(review: RunningReview) -> None:
    with review.client("admin") as admin:
        for name in ("ann", "correct horse battery"):
            sign_in(admin, name, "guess", "")
        found = admin.get(f"{API}/audit", params={"limit": 2}).json()["entries"]
    said = {"by": "password", "from": "127.0.0.1"}
    assert [one["action"] for one in found] == ["failed sign-in"] * 2
    assert [(one["who"], one["detail"]) for one in found] == [("(unknown)", said), ("ann", said)]


def test_roles_decide(review: RunningReview, ann: httpx.Client) -> None:
    assert ann.post(f"{API}/queue", json={"count": 1}).status_code == 403
    assert ann.post(f"{API}/tasks/1/reopen", json={"reason": "x"}).status_code == 403
    assert ann.get(f"{API}/audit").status_code == 404
    with review.client("admin") as manager:
        opened = manager.post(f"{API}/queue", json={"share": 1.0})
        assert opened.status_code == 201
        assert opened.json() == {"created": 0, "already": 3, "tasks": []}
        entries = manager.get(f"{API}/audit", params={"limit": 500}).json()["entries"]
    assert {"who": "admin", "action": "sign in"}.items() <= entries[0].items()


def test_machines_have_tokens_and_need_no_csrf(review: RunningReview) -> None:
    from atlas_review.auth import Role

    token = review.place.accounts.add_token("robot", (Role.MANAGER,))
    with review.client() as client:
        client.headers["Authorization"] = f"Bearer {token}"
        assert client.get(f"{API}/session").json()["user"] == "robot"
        assert client.post(f"{API}/queue", json={"count": 1}).status_code == 201
        client.headers["Authorization"] = f"Bearer {token}x"
        assert client.get(f"{API}/session").status_code == 401


def test_guessing_passwords_is_slow(review_place: ReviewPlace) -> None:
    with running_review(review_place, login_attempts=3) as running, running.client() as client:
        wrong = {"username": "ann", "password": "guess"}
        statuses = [client.post(f"{API}/session", json=wrong).status_code for _ in range(4)]
        assert statuses == [401, 401, 401, 429]
        right = {"username": "ann", "password": PASSWORD}
        answer = client.post(f"{API}/session", json=right)
        assert answer.status_code == 429
        assert answer.headers["content-type"] == "application/problem+json"
        assert 0 < int(answer.headers["retry-after"]) <= 900
        assert client.post("/auth/token", data=right).status_code == 429  # one count for both ways


def test_concurrent_guesses_count_like_consecutive_ones(review_place: ReviewPlace) -> None:
    """Each of them is pending while the others are counted."""
    with running_review(review_place, login_attempts=3) as running, running.client() as client:
        wrong = {"username": "ann", "password": "guess"}

        def guess(_: int) -> int:
            return client.post(f"{API}/session", json=wrong).status_code

        with ThreadPoolExecutor(12) as pool:
            statuses = sorted(pool.map(guess, range(24)))
    assert statuses == [401] * 3 + [429] * 21


def sign_in(client: httpx.Client, name: str, password: str, forwarded_for: str) -> int:
    headers = {"X-Forwarded-For": forwarded_for} if forwarded_for else {}
    body = {"username": name, "password": password}
    return client.post(f"{API}/session", json=body, headers=headers).status_code


@pytest.mark.parametrize("trusted", ["127.0.0.1", "10.30.0.0/16"])
def test_behind_a_proxy_a_guesser_locks_out_nobody_else(
    review_place: ReviewPlace, tmp_path: Path, trusted: str
) -> None:
    """Whether or not the proxy is trusted; if it is not, the log says so."""
    log = tmp_path / "log"
    fields: dict[str, Any] = {"login_attempts": 2, "trusted_proxies": trusted, "log": log}
    with running_review(review_place, **fields) as running, running.client() as client:
        guesses = [sign_in(client, "ann", "guess", "1.1.1.1, 203.0.113.5") for n in range(3)]
        assert guesses == [401, 401, 429]
        assert sign_in(client, "ann", PASSWORD, "203.0.113.5") == 429
        assert sign_in(client, "ann", PASSWORD, "203.0.113.6") == 200
        assert sign_in(client, "ann", PASSWORD, "203.0.113.6") == 200
    logged = [
        line for line in log.read_text().splitlines() if "a proxy that is not trusted" in line
    ]
    assert len(logged) == (0 if trusted == "127.0.0.1" else 1)
    assert all("ATLAS_REVIEW_TRUSTED_PROXIES" in line and "127.0.0.1" in line for line in logged)


def test_made_up_addresses_do_not_lift_the_limit(review_place: ReviewPlace) -> None:
    fields: dict[str, Any] = {"login_attempts": 1, "trusted_proxies": "10.30.0.0/16"}
    with running_review(review_place, **fields) as running, running.client() as client:
        guesses = [sign_in(client, f"no{n}", "guess", f"10.0.0.{n}") for n in range(11)]
    assert guesses == [401] * 10 + [429]


def test_the_log_names_a_locked_address_and_the_remedy(
    review_place: ReviewPlace, tmp_path: Path
) -> None:
    """Such as a proxy that does not name its clients: it cannot be told from a guesser."""
    log = tmp_path / "log"
    with (
        running_review(review_place, login_attempts=2, log=log) as running,
        running.client() as client,
    ):
        assert [sign_in(client, f"no{n}", "guess", "") for n in range(4)] == [401, 401, 429, 429]
    logged = [line for line in log.read_text().splitlines() if "too many failed sign-ins" in line]
    assert len(logged) == 1
    assert "ATLAS_REVIEW_TRUSTED_PROXIES" in logged[0] and "no0" not in log.read_text()


@pytest.mark.parametrize("wrong", ["*", "proxy.example.org", "10.30.0.1/16", "127.0.0.1,nginx"])
def test_an_impossible_proxy_is_refused_at_the_start(wrong: str) -> None:
    from atlas_review.settings import ReviewSettings
    from pydantic import ValidationError

    with pytest.raises(ValidationError, match="expected as 10"):
        ReviewSettings(trusted_proxies=wrong)


@pytest.mark.parametrize("command", [["remove", "ann"], ["add-user", "ann", "annotator"]])
def test_a_removed_or_changed_account_is_signed_out(tmp_path: Path, command: list[str]) -> None:
    place = make_place(tmp_path / "place", cases=1, columns=32)
    with running_review(place) as running, running.client("ann") as client:
        assert client.get(f"{API}/queue").status_code == 200
        subprocess.run(
            [sys.executable, "-m", "atlas_review", *command],
            env=place.environment(),
            input=b"another good password\n",
            check=True,
        )
        deadline = time.monotonic() + CACHED_S
        while client.get(f"{API}/queue").status_code != 401:
            assert time.monotonic() < deadline + 60, "still signed in"
            time.sleep(0.2)
        again = {"username": "ann", "password": PASSWORD}
        assert client.post(f"{API}/session", json=again).status_code == 401
        with running.client("admin") as manager:
            entries = manager.get(f"{API}/audit").json()["entries"]
        (changed,) = [one for one in entries if one["who"] == "command line"]
        roles = [] if command[0] == "remove" else ["annotator"]
        assert changed["action"] in ("remove account", "add user")
        assert changed["detail"] == {"name": "ann", "roles": roles}


def test_signing_out_leaves_no_cts_in_the_browser(review: RunningReview) -> None:
    with review.client("ann") as client:
        assert client.delete(f"{API}/session").headers["clear-site-data"] == '"cache"'


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example:18030"},  # a name that resolves to 127.0.0.1
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Host": "[::"},
        {"Host": ""},
    ],
)
def test_an_insecure_service_refuses_other_sites(
    insecure: RunningReview, headers: dict[str, str]
) -> None:
    with insecure.client() as client:
        answer = client.post(f"{API}/queue/next", headers=headers)
        assert answer.status_code in (400, 403)
        own = client.post(f"{API}/queue/next", headers={"Origin": insecure.url})
        assert own.status_code == 204


@pytest.fixture(scope="module")
def insecure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningReview]:
    place = ReviewPlace(tmp_path_factory.mktemp("insecure"))
    place.store.root.mkdir(parents=True)
    with running_review(place, insecure=True) as running:
        yield running


def test_the_first_start_makes_an_account_and_prints_its_password_once(tmp_path: Path) -> None:
    place = ReviewPlace(tmp_path)
    place.store.root.mkdir(parents=True)
    logs = [tmp_path / "first.log", tmp_path / "second.log"]
    for log in logs:
        with running_review(place, log=log):
            pass
    line = next(one for one in logs[0].read_text().splitlines() if "first start" in one)
    password = line.rsplit(" ", 1)[-1]
    assert place.accounts.by_password("admin", password) is not None
    assert password not in place.accounts.path.read_text()
    assert place.accounts.path.stat().st_mode & 0o077 == 0
    assert "first start" not in logs[1].read_text()


def test_an_insecure_service_listens_on_this_machine_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from atlas_review.settings import ReviewSettings
    from pydantic import ValidationError

    with pytest.raises(ValidationError, match="reachable from other machines"):
        ReviewSettings(listen="0.0.0.0:18030", insecure=True)
    place = ReviewPlace(tmp_path)
    place.store.root.mkdir(parents=True)
    with running_review(place, insecure=True) as running, running.client() as client:
        assert client.get(f"{API}/session").json()["insecure"] is True
        assert client.post(f"{API}/queue/next").status_code == 204


# Volumes


def test_volumes_are_cached_by_content_and_come_in_ranges(
    review: RunningReview, ann: httpx.Client, case: dict[str, Any]
) -> None:
    content = review.place.store.ct_path(case["id"]).read_bytes()
    whole = ann.get(case["ct"]["url"])
    assert whole.content == content
    assert whole.headers["etag"] == f'"{case["ct"]["sha256"]}"'
    assert "immutable" in whole.headers["cache-control"]
    again = ann.get(case["ct"]["url"], headers={"If-None-Match": whole.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    part = ann.get(case["ct"]["url"], headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, content[10:20])
    beyond = ann.get(case["ct"]["url"], headers={"Range": f"bytes={len(content)}-"})
    assert beyond.status_code == 416
    assert "no-cache" in ann.get(case["ct"]["url"].partition("?")[0]).headers["cache-control"]


def test_the_label_map_equals_the_assembled_one(
    review: RunningReview, ann: httpx.Client, case: dict[str, Any], tmp_path: Path
) -> None:
    store = review.place.store
    with Catalog.open(review.place.catalog_url) as catalog:
        labels = catalog.labels(case["id"])
    candidates: dict[str, list[Candidate]] = {}
    for label in labels:
        mask = read_label(store.path(label.path)).voxels == label.value
        candidates.setdefault(label.organ, []).append(Candidate(label, mask))
    expected = assemble(candidates, ABDOMEN_ATLAS)
    served = tmp_path / "map.nii.gz"
    served.write_bytes(ann.get(case["label_map"]["url"]).content)
    found = read_label(served)
    assert np.array_equal(found.voxels, expected.labels)
    assert found.geometry.same_grid(geometry_of(case))


def test_the_joint_attention_leaves_out_organs_with_original_labels(
    review: RunningReview, ann: httpx.Client, case: dict[str, Any], tmp_path: Path
) -> None:
    assert {one["organ"]: one["counts"] for one in case["attention"]}["spleen"] is False
    served = tmp_path / "attention.nii.gz"
    served.write_bytes(ann.get(case["attention_map"]["url"]).content)
    geometry, maps = geometry_of(case), []
    for one in (a for a in case["attention"] if a["counts"]):
        path = tmp_path / f"{one['organ']}.nii.gz"
        path.write_bytes(ann.get(one["url"]).content)
        maps.append(read_cropped(path, geometry))
        assert read_header(path).geometry.voxels < geometry.voxels
    joint = read_stored(served)
    assert joint.geometry.same_grid(geometry)
    assert np.array_equal(joint.voxels, np.max(maps, axis=0))


def test_regions_come_largest_first_with_their_position(
    ann: httpx.Client, case: dict[str, Any]
) -> None:
    answer = ann.get(f"{API}/cases/{case['id']}/regions", params={"organ": "liver"}).json()
    sizes = [region["region_ml"] for region in answer["regions"]]
    assert sizes == sorted(sizes, reverse=True)
    assert min(sizes) >= answer["min_ml"] == 0.1
    every = ann.get(
        f"{API}/cases/{case['id']}/regions", params={"organ": "liver", "min_ml": 0}
    ).json()["regions"]
    assert [one for one in every if one["region_ml"] >= 0.1] == answer["regions"]
    organ_ml = next(one["volume_ml"] for one in case["labels"] if one["organ"] == "liver")
    assert {one["organ_ml"] for one in every} == {organ_ml}
    assert all(one["peak"] >= answer["threshold"] for one in every)
    region = answer["regions"][0]
    affine = np.array(case["affine"])
    np.testing.assert_allclose(affine @ [*region["centroid_ijk"], 1], [*region["centroid_mm"], 1])
    low, high = region["box_ijk"]
    assert all(a <= c <= b for a, c, b in zip(low, region["centroid_ijk"], high, strict=True))


def test_the_peak_of_a_region_is_its_highest_voxel(
    ann: httpx.Client, case: dict[str, Any], tmp_path: Path
) -> None:
    answer = ann.get(f"{API}/cases/{case['id']}/regions", params={"organ": "liver"}).json()
    url = next(one["url"] for one in case["attention"] if one["organ"] == "liver")
    (tmp_path / "liver.nii.gz").write_bytes(ann.get(url).content)
    geometry = geometry_of(case)
    attention = read_cropped(tmp_path / "liver.nii.gz", geometry) / 136
    for region in answer["regions"]:
        peak = tuple(region["peak_ijk"])
        np.testing.assert_allclose(geometry.matrix @ [*peak, 1], [*region["peak_mm"], 1])
        low, high = region["box_ijk"]
        assert all(a <= p <= b for a, p, b in zip(low, peak, high, strict=True))
        assert attention[peak] >= answer["threshold"]
        assert attention[peak] >= region["attention_ml"] / region["region_ml"]


def test_regions_of_all_organs_name_their_organ(ann: httpx.Client, case: dict[str, Any]) -> None:
    url = f"{API}/cases/{case['id']}/regions"
    of_all = ann.get(url).json()["regions"]
    counting = [one["organ"] for one in case["attention"] if one["counts"]]
    each = {organ: ann.get(url, params={"organ": organ}).json()["regions"] for organ in counting}
    assert "spleen" not in each  # it has an original label
    sizes = [region["region_ml"] for region in of_all]
    assert sizes == sorted(sizes, reverse=True)
    for organ, regions in each.items():
        assert [one for one in of_all if one["organ"] == organ] == regions
    assert len(of_all) == sum(len(regions) for regions in each.values())


def test_contact_sheets_are_rendered_in_advance(tmp_path: Path) -> None:
    place = make_place(tmp_path / "place", cases=2, columns=32)

    def sheets() -> dict[str, set[str]]:
        found = place.store.root.glob("cases/*/derived/contact-*.png")
        by_case: dict[str, set[str]] = {}
        for path in found:
            by_case.setdefault(path.parents[1].name, set()).add(path.name)
        return by_case

    def wait_for(done: Callable[[dict[str, set[str]]], bool]) -> dict[str, set[str]]:
        while not done(now := sheets()):
            time.sleep(0.1)
        return now

    with running_review(place, sheet_interval_s=0.1) as running, running.client("ann") as client:
        first = wait_for(lambda now: len(now) == 2)
        case = client.get(f"{API}/cases/{min(first)}").json()
        served = client.get(f"{API}/cases/{case['id']}/contact-sheet.png").content
        (name,) = first[case["id"]]
        path = place.store.derived_path(case["id"], name)
        assert path.read_bytes() == served
        assert sheets() == first  # the reader was served what was there
        mask = np.zeros(case["shape"], np.uint8)
        mask[5:9, 5:9, 2:4] = 1
        content = nifti(tmp_path, mask, geometry_of(case))
        base = label_of(case, "aorta")["id"]
        take(client, case)
        hand_in(client, case["id"], content, organ="aorta", base=base).raise_for_status()
        wait_for(lambda now: not now[case["id"]] & first[case["id"]] and len(now[case["id"]]) == 1)


def test_the_contact_sheet_worker_ends_with_the_service(tmp_path: Path) -> None:
    place = make_place(tmp_path / "place", cases=1, columns=32)
    with running_review(place, sheet_interval_s=0.1) as running:
        service = psutil.Process(running.process.pid)
        (worker,) = [
            one for one in service.children() if "contact_sheet_worker" in str(one.cmdline())
        ]
        running.process.send_signal(signal.SIGKILL)
        running.process.wait()
        worker.wait()
        assert not worker.is_running()


def test_an_archive_holds_volumes_and_colours(ann: httpx.Client, case: dict[str, Any]) -> None:
    answer = ann.get(f"{API}/cases/{case['id']}/download.zip")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        inside = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    assert inside["ct.nii.gz"] == ann.get(case["ct"]["url"]).content
    assert inside["labels.nii.gz"] == ann.get(case["label_map"]["url"]).content
    assert b'5   160   81  149        1  1  1    "liver"' in inside["labels.itksnap.txt"]
    assert b"5 liver 160 81 149 255" in inside["labels.ctbl"]


def test_a_contact_sheet_shows_three_planes_twice(ann: httpx.Client, case: dict[str, Any]) -> None:
    answer = ann.get(f"{API}/cases/{case['id']}/contact-sheet.png")
    sheet = Image.open(io.BytesIO(answer.content))
    assert sheet.width > 2 * 300
    upper = np.asarray(sheet)[: sheet.height // 2]
    coloured = np.ptp(upper.astype(int), axis=2) > 40
    assert coloured.mean() > 0.005  # labels are in colour, a CT is grey


# Labels


def test_a_label_is_stored_as_it_was_drawn(
    review: RunningReview, ann: httpx.Client, case: dict[str, Any], tmp_path: Path
) -> None:
    before = label_of(case, "stomach")
    mask = np.zeros(case["shape"], np.uint8)
    mask[10:20, 10:20, 3:6] = 7
    content = nifti(tmp_path, mask, geometry_of(case))
    take(ann, case)
    answer = hand_in(ann, case["id"], content, organ="stomach", base=before["id"])
    assert answer.status_code == 201, answer.text
    version = answer.json()
    assert (version["author"], version["base"], version["in_force"]) == ("ann", before["id"], True)
    assert version["voxels"] == 300
    fetched = tmp_path / "back.nii.gz"
    fetched.write_bytes(ann.get(version["url"]).content)
    back = read_label(fetched)
    assert np.array_equal(back.voxels, mask // 7)
    now = ann.get(f"{API}/cases/{case['id']}").json()
    assert now["label_map"]["sha256"] != case["label_map"]["sha256"]
    served = tmp_path / "map.nii.gz"
    served.write_bytes(ann.get(now["label_map"]["url"]).content)
    assert read_label(served).voxels[12, 12, 4] != 0

    stale = hand_in(ann, case["id"], content + b"", organ="stomach", base=before["id"])
    assert stale.status_code == 201  # the very same mask is the version in force
    mask[10:20, 10:20, 7] = 7
    other = nifti(tmp_path, mask, geometry_of(case))
    with review.client("rita") as rita:
        conflict = hand_in(rita, case["id"], other, organ="stomach", base=before["id"])
    assert conflict.status_code == 409
    problem = conflict.json()
    assert problem["current"]["id"] == version["id"]
    kept = problem["submitted"]
    assert ann.get(kept["url"]).status_code == 200
    listed = ann.get(f"{API}/cases/{case['id']}/labels", params={"organ": "stomach"}).json()
    assert [one["id"] for one in listed["labels"]][-2:] == [version["id"], kept["id"]]


def test_a_mask_in_another_axis_order_is_reoriented(
    ann: httpx.Client, case: dict[str, Any], tmp_path: Path
) -> None:
    grid = geometry_of(case)
    mask = np.zeros(case["shape"], np.uint8)
    mask[5:9, 10:20, 2:4] = 1
    turned = grid.axis_map.to_canonical(mask)[:, ::-1]
    matrix = grid.canonical().matrix.copy()
    matrix[:3, 3] += matrix[:3, 1] * (turned.shape[1] - 1)
    matrix[:3, 1] *= -1
    geometry = VolumeGeometry.from_array(turned.shape, matrix)
    base = label_of(case, "aorta")["id"]
    content = nifti(tmp_path, turned, geometry)
    take(ann, case)
    answer = hand_in(ann, case["id"], content, organ="aorta", base=base)
    assert answer.status_code == 201, answer.text
    back = tmp_path / "back.nii.gz"
    back.write_bytes(ann.get(answer.json()["url"]).content)
    assert np.array_equal(read_label(back).voxels, mask)


def _bomb(folder: Path, case: dict[str, Any]) -> bytes:
    """A file of kilobytes that decompresses to much more than its header claims."""
    good = gzip.decompress(nifti(folder, np.zeros(case["shape"], np.uint8), geometry_of(case)))
    return gzip.compress(good[:352] + bytes(1 << 28), 9)


def _claims_more(folder: Path, case: dict[str, Any]) -> bytes:
    good = bytearray(
        gzip.decompress(nifti(folder, np.zeros(case["shape"], np.uint8), geometry_of(case)))
    )
    good[42:48] = np.array([32000] * 3, "<i2").tobytes()
    return gzip.compress(bytes(good))


def _with_nan(folder: Path, case: dict[str, Any]) -> bytes:
    voxels = np.zeros(case["shape"], np.float32)
    content = gzip.decompress(nifti(folder, voxels, geometry_of(case)))
    return gzip.compress(content[:352] + np.float32("nan").tobytes() + content[356:])


def _shifted(folder: Path, case: dict[str, Any]) -> bytes:
    matrix = np.array(case["affine"])
    matrix[0, 3] += 5
    geometry = VolumeGeometry.from_array(tuple(case["shape"]), matrix)
    return nifti(folder, np.ones(case["shape"], np.uint8), geometry)


def _beside(folder: Path, case: dict[str, Any]) -> bytes:
    """Between the CT's voxels, so no box of its grid."""
    voxels = np.ones((8, 8, 8), np.uint8)
    affine = np.array(case["affine"])
    affine[:3, 3] += 0.4 * affine[:3, 0]
    return nifti(folder, voxels, VolumeGeometry.from_array((8, 8, 8), affine))


def _many_values(folder: Path, case: dict[str, Any]) -> bytes:
    voxels = np.zeros(case["shape"], np.uint8)
    voxels[0, 0, :3] = (1, 2, 77)
    return nifti(folder, voxels, geometry_of(case))


def _fractions(folder: Path, case: dict[str, Any]) -> bytes:
    voxels = np.full(case["shape"], 0.5, np.float32)
    return nifti(folder, voxels, geometry_of(case))


def _truncated(folder: Path, case: dict[str, Any]) -> bytes:
    rng = np.random.default_rng(1)
    voxels = rng.integers(0, 2, case["shape"]).astype(np.uint8)
    return nifti(folder, voxels, geometry_of(case))[:-2000]


BAD: dict[str, tuple[Callable[[Path, dict[str, Any]], bytes], int, str]] = {
    "on another grid": (_beside, 422, "different grids"),
    "of another place": (_shifted, 422, "different grids"),
    "with unknown values": (_many_values, 422, "one value"),
    "truncated": (_truncated, 422, ""),
    "with NaN": (_with_nan, 422, "NaN"),
    "with fractions": (_fractions, 422, "whole numbers"),
    "a gzip bomb": (_bomb, 422, ""),
    "that claims more than it holds": (_claims_more, 422, ""),
    "that is none": (lambda folder, case: b"hello", 422, "NIfTI"),
    "that is empty": (lambda folder, case: b"", 422, "empty"),
}


def _hand_in_mask(client: httpx.Client, case: dict[str, Any], content: bytes) -> httpx.Response:
    base = label_of(client.get(f"{API}/cases/{case['id']}").json(), "liver")["id"]
    return hand_in(client, case["id"], content, organ="liver", base=base)


def _save_draft(client: httpx.Client, case: dict[str, Any], content: bytes) -> httpx.Response:
    cases = client.get(f"{API}/cases").json()["cases"]
    task = next(one["task_id"] for one in cases if one["id"] == case["id"])
    return client.put(f"{API}/tasks/{task}/draft", content=content)


def _hand_in_by_monai(client: httpx.Client, case: dict[str, Any], content: bytes) -> httpx.Response:
    files = {"label": ("mask.nii.gz", content)}
    return client.put("/datastore/label", params={"image": case["id"]}, files=files)


ENTRIES = {
    "as a mask": _hand_in_mask,
    "as a draft": _save_draft,
    "by MONAI Label": _hand_in_by_monai,
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("what", BAD)
def test_a_bad_mask_is_refused_with_the_reason_and_not_stored(
    review: RunningReview,
    ann: httpx.Client,
    case: dict[str, Any],
    tmp_path: Path,
    what: str,
    entry: str,
) -> None:
    make, status, words = BAD[what]
    if what == "with unknown values" and entry != "as a mask":
        words = "values" if entry == "as a draft" else "no segment"
    before = stored(review)
    answer = ENTRIES[entry](ann, case, make(tmp_path, case))
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert words in problem["detail"]
    assert problem["case"] == case["id"]
    assert stored(review) == before


def test_a_request_without_a_volume_must_be_small(review: RunningReview) -> None:
    with review.client() as client:
        password = {"username": "ann", "password": "x" * (2 << 20)}
        for answer in (
            client.post(f"{API}/session", json=password),
            client.post("/auth/token", data=password),
        ):
            assert answer.status_code == 413
            assert "at most 1048576 bytes" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ({"organ": "heart", "base": "none"}, 422, "unknown organ"),
        ({"organ": "liver", "base": "99999"}, 422, "no label of the liver"),
        ({"organ": "liver", "base": "none", "task": 99999}, 404, "no such task"),
        ({"organ": "liver"}, 422, "base"),
    ],
)
def test_a_mask_with_a_wrong_target_is_refused(
    review: RunningReview,
    ann: httpx.Client,
    case: dict[str, Any],
    tmp_path: Path,
    query: dict[str, Any],
    status: int,
    words: str,
) -> None:
    before = stored(review)
    content = nifti(tmp_path, np.ones(case["shape"], np.uint8), geometry_of(case))
    answer = hand_in(ann, case["id"], content, **query)
    assert answer.status_code == status
    assert words in answer.json()["detail"]
    assert stored(review) == before


@pytest.mark.parametrize("name", ["../../etc/passwd.nii.gz", "a/b.nii.gz", "..\\x.nii.gz", ".."])
def test_a_path_as_file_name_is_refused(
    review: RunningReview, ann: httpx.Client, case: dict[str, Any], tmp_path: Path, name: str
) -> None:
    before = stored(review)
    content = nifti(tmp_path, np.ones(case["shape"], np.uint8), geometry_of(case))
    answer = hand_in(ann, case["id"], content, name=name, organ="liver", base="none")
    assert answer.status_code == 422
    assert "path" in answer.json()["detail"]
    assert stored(review) == before


@pytest.mark.parametrize("honest", [True, False], ids=["says so", "just comes"])
def test_an_oversized_body_is_refused_before_it_has_arrived(
    review_place: ReviewPlace, honest: bool
) -> None:
    with running_review(review_place, max_upload_bytes=100_000) as running:
        with running.client("ann") as client:
            case_id = client.get(f"{API}/cases").json()["cases"][0]["id"]
            before = stored(running)
            path = f"{API}/cases/{case_id}/labels?organ=liver&base=none"
            kind = {"Content-Type": "multipart/form-data; boundary=x"}
            head = b'--x\r\nContent-Disposition: form-data; name="label"; filename="m"\r\n\r\n'
            body = head + bytes(300_000)
            content: Any = body if honest else iter([body[:1000], body[1000:]])
            answer = client.post(path, content=content, headers=kind)
        assert answer.status_code == 413
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "at most 100000 bytes" in answer.json()["detail"]
        assert stored(running) == before


def test_a_killed_service_leaves_nothing_half_written(
    review_place: ReviewPlace, tmp_path: Path
) -> None:
    with running_review(review_place) as running:
        with running.client("ann") as client:
            case_id = client.get(f"{API}/cases").json()["cases"][0]["id"]
            cookie = client.cookies["atlasloop_session"]
            token = client.headers["X-CSRF-Token"]
        before = stored(running)
        address = running.url.removeprefix("http://").split(":")
        with socket.create_connection((address[0], int(address[1]))) as connection:
            connection.sendall(
                f"PUT {API}/tasks/1/draft HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n"
                f"Cookie: atlasloop_session={cookie}\r\nX-CSRF-Token: {token}\r\n\r\n".encode()
                + bytes(500_000)
            )
            incoming = review_place.store.root / ".incoming"
            deadline = time.monotonic() + 60
            while not any(incoming.rglob("draft")):
                assert time.monotonic() < deadline, "the upload does not arrive"
            running.process.send_signal(signal.SIGKILL)
            running.process.wait()
    with running_review(review_place) as again, again.client("ann") as client:
        assert stored(again) == before
        assert list(incoming.iterdir()) == []
        assert client.get(f"{API}/cases/{case_id}").status_code == 200


# Drafts


def test_a_draft_belongs_to_its_author(
    review: RunningReview, ann: httpx.Client, tmp_path: Path
) -> None:
    task = ann.get(f"{API}/tasks/2").json()
    labels = ann.get(task["case"]["label_map"]["url"]).content
    base = {one["organ"]: one["id"] for one in task["case"]["labels"]}
    saved = ann.put(f"{API}/tasks/2/draft", content=labels, headers={"X-Base": json.dumps(base)})
    assert saved.status_code == 200, saved.text
    found = ann.get(f"{API}/tasks/2/draft")
    assert json.loads(found.headers["x-base"]) == base
    assert found.headers["etag"] == f'"{saved.json()["sha256"]}"'
    path = tmp_path / "draft.nii.gz"
    path.write_bytes(found.content)
    (tmp_path / "labels.nii.gz").write_bytes(labels)
    assert np.array_equal(read_label(path).voxels, read_label(tmp_path / "labels.nii.gz").voxels)
    with review.client("bob") as bob:
        assert bob.get(f"{API}/tasks/2/draft").status_code == 404
        assert bob.delete(f"{API}/tasks/2/draft").status_code == 404
    for _ in range(2):  # the file of an older draft is removed
        ann.put(f"{API}/tasks/2/draft", content=labels)
    drafts = list(CaseStore(review.place.store.root).root.rglob("drafts/*.nii.gz"))
    assert len(drafts) == 1
    assert ann.delete(f"{API}/tasks/2/draft").status_code == 204
    with review.client("admin") as manager:
        entries = manager.get(f"{API}/audit", params={"limit": 100}).json()["entries"]
    said = [one["action"] for one in entries if one["detail"] == {"task": 2}]
    assert said == ["drop draft", "begin draft"]  # newest first; later saves are not recorded
    assert ann.get(f"{API}/tasks/2/draft").status_code == 404
    assert ann.put(f"{API}/tasks/2/draft", content=b"nonsense").status_code == 422


# A whole revision


def test_a_case_from_lease_to_revision(tmp_path: Path) -> None:
    place = make_place(tmp_path / "place", cases=1, columns=32)
    with running_review(place) as running, running.client("ann") as ann, running.client("bob") as b:
        task = ann.post(f"{API}/queue/next").json()
        assert b.post(f"{API}/queue/next").status_code == 204
        assert b.post(f"{API}/tasks/{task['id']}/lease").status_code == 409
        detail = ann.get(f"{API}/tasks/{task['id']}").json()
        case = detail["case"]
        mask = np.zeros(case["shape"], np.uint8)
        mask[5:9, 5:9, 5:9] = 1
        content = nifti(tmp_path, mask, geometry_of(case))
        base = label_of(case, "stomach")["id"]
        version = hand_in(
            ann, case["id"], content, organ="stomach", base=base, task=task["id"]
        ).json()
        judged = ann.put(
            f"{API}/tasks/{task['id']}/organs/stomach",
            json={"verdict": "needs_revision", "error_type": "missing_cavity", "note": "fundus"},
        )
        assert judged.status_code == 200
        done = ann.post(
            f"{API}/tasks/{task['id']}/revise",
            json={"seconds_spent": 321.5, "labels": {"stomach": version["id"]}},
        ).json()
        assert done["state"] == "revised"
        history = ann.get(f"{API}/tasks/{task['id']}").json()["history"]
        assert [one["action"] for one in history] == [
            "queue", "lease", "hand in label", "judge", "revised",
        ]  # fmt: skip
        numbers = ann.get(f"{API}/statistics").json()
        assert numbers["cases_by_state"] == {"revised": 1}
        assert numbers["throughput"][0]["seconds"] == 321.5
        assert numbers["organ_volumes"]["stomach"]["count"] == 1
        assert ann.put(
            f"{API}/cases/{case['id']}/flag", json={"flagged": True, "reason": "odd"}
        ).json() == {"flagged": True}
        flagged = ann.get(f"{API}/cases", params={"flagged": True}).json()
        assert [one["flag_reason"] for one in flagged["cases"]] == ["odd"]


# The page


def test_headers_restrict_what_the_page_may_do(review: RunningReview) -> None:
    with review.client() as client:
        answer = client.get("/healthz")
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "blob:" not in policy
        assert {"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"} <= set(
            policy.split("; ")
        )
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert client.get("/assets/%2e%2e/%2e%2e/settings.py").status_code == 404
        assert client.get(f"{API}/nothing").status_code == 404


def test_a_service_whose_organs_are_stale_says_so_and_how_it_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_place(tmp_path, cases=1)
    with running_review(place) as running, running.client() as client:
        with Catalog.open(place.catalog_url) as catalog:
            extend_organs(catalog, read_scheme("abdomen_atlas_1_1"))
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()["title"]) == (503, "Not available now")
        assert re.search(
            r"different organs \(expected abdomen_atlas_1_1 .*got abdomen_atlas_1_0 .*"
            "restart it with the atlas's: `atlasloop up` does",
            answer.json()["detail"],
        )
        assert client.get("/healthz").is_success
        monkeypatch.setenv("ATLASLOOP_REVIEW_URL", running.url)
        with pytest.raises(Unavailable, match=r"not ready \(got the atlas and the review service"):
            surroundings.review(Places.read(tmp_path))


def test_metrics_have_a_port_of_their_own_and_name_no_case(review_place: ReviewPlace) -> None:
    address = f"127.0.0.1:{free_port()}"
    with (
        running_review(review_place, metrics_listen=address) as running,
        running.client("ann") as ann,
    ):
        case_id = ann.get(f"{API}/cases").json()["cases"][0]["id"]
        ann.get(f"{API}/cases/{case_id}")
        text = httpx.get(f"http://{address}/metrics", trust_env=False).text
        assert ann.get("/metrics").status_code == 404
    assert "atlasloop_review_requests_total" in text
    assert 'atlasloop_review_tasks{state="open"}' in text
    assert case_id not in text
