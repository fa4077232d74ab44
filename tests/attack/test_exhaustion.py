"""Strangers who hold connections, or guess passwords as fast as they can: the review service still
answers everybody else."""

from __future__ import annotations

import resource
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from atlas_review.page import STATIC
from review_server import PASSWORD, ReviewPlace, RunningReview, make_place, running_review

HALF_OPEN = 300

HEADS = {
    "silent": b"",
    "head": b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: ",
    "body": b"POST /api/v1/session HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Content-Length: 100\r\n\r\n{",
    "form": b"POST /auth/token HTTP/1.1\r\nHost: x\r\n"
    b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 100\r\n\r\na",
    "refused upload": b"PUT /api/v1/tasks/1/draft HTTP/1.1\r\nHost: x\r\n"
    b"Content-Length: 100000\r\n\r\na",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> ReviewPlace:
    return make_place(tmp_path_factory.mktemp("exhaustion"), cases=1, columns=32)


@pytest.fixture(scope="module")
def running(place: ReviewPlace) -> Iterator[RunningReview]:
    with running_review(place, client_timeout_s=1) as service:
        yield service


def connected(service: RunningReview, first: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2])))
    connection.settimeout(60)
    connection.sendall(first)
    return connection


def until_closed(connection: socket.socket) -> bytes:
    """What the service sends before it closes the connection."""
    received = b""
    with connection:
        try:
            while piece := connection.recv(1 << 16):
                received += piece
        except ConnectionResetError:
            pass
    return received


@pytest.mark.parametrize("kind", HEADS)
def test_half_open_connections_are_closed_and_keep_nobody_out(
    running: RunningReview, kind: str
) -> None:
    held = [connected(running, HEADS[kind]) for _ in range(HALF_OPEN)]
    with running.client() as client:
        for path in ("/healthz", "/readyz"):
            assert client.get(path).status_code == 200
    answers = [until_closed(one) for one in held]
    first_lines = {answer.partition(b"\r\n")[0] for answer in answers}
    expected = {"silent": {b""}, "refused upload": {b"HTTP/1.1 401 Unauthorized"}}
    assert first_lines == expected.get(kind, {b"HTTP/1.1 408 Request Timeout"})


def test_a_connection_that_never_ends_its_head_is_bounded(running: RunningReview) -> None:
    connection = connected(running, b"GET / HTTP/1.1\r\nHost: x\r\nX-A: ")
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        for _ in range(1000):  # 64 MB, if nobody objects
            connection.sendall(bytes([65]) * (1 << 16))
    connection.close()


def test_a_body_that_drips_is_given_up(running: RunningReview) -> None:
    connection = connected(running, HEADS["body"].replace(b"100", b"100000"))
    connection.setblocking(False)
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        while True:  # ends by the service alone
            connection.sendall(b" ")
            time.sleep(0.1)
    connection.close()


def test_a_client_that_does_not_read_its_answer_is_dropped(running: RunningReview) -> None:
    (script,) = (STATIC / "assets").glob("index-*.js")
    wanted = f"GET /assets/{script.name} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(60)
    connection.connect(("127.0.0.1", int(running.url.rpartition(":")[2])))
    connection.sendall(wanted * 20)
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        while True:
            connection.sendall(b"GET ")
            time.sleep(0.1)
    connection.close()


def test_silent_connections_give_way_where_files_are_scarce(place: ReviewPlace) -> None:
    """However patient the service is."""
    with running_review(place, client_timeout_s=3600) as service:
        resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, (200, 200))
        held = [connected(service, HEADS["head"]) for _ in range(HALF_OPEN)]
        with service.client() as client:
            assert client.get("/readyz").status_code == 200
        for one in held:
            one.close()


GUESSES = 160


def guess(client: httpx.Client, name: str, password: str, address: str) -> httpx.Response:
    body = {"username": name, "password": password}
    return client.post("/api/v1/session", json=body, headers={"X-Forwarded-For": address})


def test_a_flood_of_guesses_with_made_up_addresses_delays_nobody_else(
    running: RunningReview,
) -> None:
    """Each guess is a hash that takes a tenth of a second; all else goes past them."""
    statuses: Counter[int] = Counter()
    under_way = threading.Event()

    def attack(number: int) -> None:
        with running.client() as client:
            answer = guess(client, "ann", "guess", f"198.51.100.{number}")
        assert answer.status_code == 401 or int(answer.headers["retry-after"]) > 0
        statuses[answer.status_code] += 1
        under_way.set()

    with running.client("bob") as bob, ThreadPoolExecutor(GUESSES) as pool:
        attacks = [pool.submit(attack, number) for number in range(GUESSES)]
        assert under_way.wait(60)
        assert bob.get("/readyz").status_code == 200
        assert bob.get("/api/v1/queue").status_code == 200
        hashed_meanwhile = statuses[401]
        for one in attacks:
            one.result()
    assert set(statuses) == {401, 429}
    assert hashed_meanwhile < statuses[401] / 2


def test_guesses_from_elsewhere_lock_nobody_out(place: ReviewPlace) -> None:
    with running_review(place, login_attempts=1) as service, service.client() as client:
        for number in range(12):
            assert guess(client, "ann", "guess", f"2001:db8:0:{number}::1").status_code == 401
            same_line = guess(client, "ann", "guess", f"2001:db8:0:{number}:ffff::2")
            assert same_line.status_code == 429
        assert guess(client, "ann", PASSWORD, "203.0.113.9").status_code == 200


def test_names_without_bounds_are_refused_before_they_are_kept(running: RunningReview) -> None:
    with running.client() as client:
        long = {"username": "a" * 900_000, "password": "guess"}
        assert client.post("/auth/token", data=long).status_code == 422
        assert client.post("/api/v1/session", json=long).status_code == 422
