"""A review service that is killed at random while people hand in: what it said 201 to is there."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import read_label, write_volume
from ports import free_port
from review_server import PASSWORD, ReviewPlace, make_place, running_review

API = "/api/v1"
ORGAN = "liver"
PEOPLE = ("ann", "bob", "admin")


@dataclass
class Person:
    """Somebody who hands in one mask after the other to the case of their lease.

    Attributes:
        promised: version → the mask that the service acknowledged as this version.
        refused: answers that no killed service explains.
    """

    name: str
    url: str
    folder: Path
    up: threading.Event
    enough: threading.Event
    acknowledged: threading.Event
    case_id: str = ""
    promised: dict[str, np.ndarray] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    def work(self) -> None:
        dice = np.random.default_rng(sum(self.name.encode()))
        while not self.enough.is_set():
            self.up.wait()
            try:
                with httpx.Client(base_url=self.url, timeout=60, trust_env=False) as client:
                    self._sign_in(client)
                    while not self.enough.is_set():
                        self._hand_in(client, dice)
            except httpx.TransportError:
                continue  # killed; it comes back

    def _sign_in(self, client: httpx.Client) -> None:
        answer = client.post(
            f"{API}/session", json={"username": self.name, "password": PASSWORD}
        ).raise_for_status()
        client.headers["X-CSRF-Token"] = answer.json()["csrf_token"]
        if not self.case_id:
            task = client.post(f"{API}/queue/next").raise_for_status().json()
            self.task, self.case_id = task["id"], task["case_id"]

    def _hand_in(self, client: httpx.Client, dice: np.random.Generator) -> None:
        case = client.get(f"{API}/tasks/{self.task}").raise_for_status().json()["case"]
        base = next(one["id"] for one in case["labels"] if one["organ"] == ORGAN)
        mask = np.zeros(case["shape"], np.uint8, order="F")
        i, j, k = (int(dice.integers(0, length - 6)) for length in case["shape"])
        mask[i : i + 6, j : j + 6, k : k + 6] = 1
        path = self.folder / f"{self.name}.nii.gz"
        geometry = VolumeGeometry(tuple(case["shape"]), tuple(tuple(row) for row in case["affine"]))
        write_volume(path, mask, geometry)
        answer = client.post(
            f"{API}/cases/{self.case_id}/labels",
            params={"organ": ORGAN, "base": base, "task": self.task},
            files={"label": ("mask.nii.gz", path.read_bytes())},
        )
        if answer.status_code == httpx.codes.CREATED:
            self.promised[answer.json()["id"]] = mask
            self.acknowledged.set()
        else:
            self.refused.append(answer.text)

    def lost(self, client: httpx.Client) -> list[str]:
        """Versions that are not there as they were handed in."""
        lost = []
        for version, mask in self.promised.items():
            answer = client.get(f"{API}/cases/{self.case_id}/labels/{version}.nii.gz")
            path = self.folder / "found.nii.gz"
            path.write_bytes(answer.content)
            if not answer.is_success or not np.array_equal(read_label(path).voxels != 0, mask != 0):
                lost.append(version)
        return lost


@pytest.fixture
def place(tmp_path: Path) -> ReviewPlace:
    return make_place(tmp_path / "place", cases=len(PEOPLE), columns=32)


def test_what_a_killed_review_acknowledged_is_there(
    place: ReviewPlace,
    tmp_path: Path,
    pytestconfig: pytest.Config,
    record_property: Callable[[str, object], None],
) -> None:
    kills = pytestconfig.getoption("kills")
    dice = random.Random(pytestconfig.getoption("kill_seed"))
    port, up, enough = free_port(), threading.Event(), threading.Event()
    url = f"http://127.0.0.1:{port}"
    people = [Person(name, url, tmp_path, up, enough, threading.Event()) for name in PEOPLE]
    with ThreadPoolExecutor(len(people)) as pool:
        works = {person.name: pool.submit(person.work) for person in people}

        def await_acknowledged() -> None:
            """Everybody's next mask is in, of the service that runs now."""
            for person in people:
                person.acknowledged.clear()
            for person in people:
                while not person.acknowledged.wait(0.1):
                    if works[person.name].done():
                        works[person.name].result()

        try:
            for _ in range(kills):
                with running_review(place, port=port) as running:
                    up.set()
                    await_acknowledged()
                    threading.Event().wait(dice.uniform(0, 1))  # the random moment
                    up.clear()
                    running.process.send_signal(signal.SIGKILL)
                    running.process.wait()
            with running_review(place, port=port) as running:
                up.set()
                await_acknowledged()
                enough.set()
                for work in works.values():
                    work.result()
                with running.client("admin") as admin:
                    lost = [version for person in people for version in person.lost(admin)]
        finally:
            enough.set()
            up.set()
    record_property("kills", kills)
    record_property("lost", len(lost))
    assert lost == []
    assert [person.refused for person in people] == [[] for _ in people]
