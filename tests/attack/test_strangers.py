"""Strangers on this machine: a web page that its user opens, and another local user.

Both may send whatever they like to every port of a real stack. Nothing of theirs may run, nothing
may be read that is not public, nothing may change.
"""

from __future__ import annotations

import base64
import http.server
import json
import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest
import tritonclient.grpc as triton
from atlas_core.catalog import Catalog
from atlas_core.review import AuditLog
from atlas_embedded.access import prefect_auth
from atlas_embedded.settings import EmbeddedSettings
from atlas_embedded.stack import running
from atlas_review.auth import ACCOUNTS_FILE, Accounts, Role
from browser import CHROMIUM, FLAGS
from playwright.sync_api import Browser, Page, sync_playwright
from prefect_api import as_operator, ask_prefect
from stack import Stack
from tritonclient.utils import InferenceServerException

EVIL_HOST = "evil.example"


@dataclass(frozen=True)
class Site:
    """Another origin on this machine, with one empty page."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"


class _EmptyPage(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>evil</title>")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def target(stack: Stack) -> Iterator[Stack]:
    """The session's stack with every part."""
    parts = ("triton", "attention", "review", "prefect", "flows")
    settings = stack.settings.model_copy(update={"components": parts})
    with running(settings):
        yield Stack(settings)


@pytest.fixture(scope="module")
def evil_site() -> Iterator[Site]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _EmptyPage) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Site(server.server_port)
        server.shutdown()


@pytest.fixture(scope="module")
def rebound_chromium() -> Iterator[Browser]:
    """A browser to which the attacker's name resolves to this machine (DNS rebinding)."""
    if not CHROMIUM.is_file():
        pytest.skip(f"{CHROMIUM} is missing: run `make setup-browser`")
    rules = f"--host-resolver-rules=MAP {EVIL_HOST} 127.0.0.1"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, rules])
        yield browser
        browser.close()


def http_ports(settings: EmbeddedSettings) -> dict[str, int]:
    return {
        name: getattr(settings, name)
        for name in type(settings).model_fields
        if name.endswith("_port")
    }


SEND = """async ([url, method, body, cors]) => {
  const headers = cors ? {"Content-Type": "application/json"} : {"Content-Type": "text/plain"};
  try {
    const answer = await fetch(url, {method, headers, body, mode: cors ? "cors" : "no-cors"});
    return {type: answer.type, status: answer.status, text: await answer.text()};
  } catch (error) {
    return {type: "refused", status: 0, text: String(error)};
  }
}"""


def send(page: Page, url: str, method: str, body: object, *, cors: bool) -> dict[str, Any]:
    """What a script of `page` gets for a request."""
    text = None if body is None else json.dumps(body)
    return dict(page.evaluate(SEND, [url, method, text, cors]))


def evil_model(mark: Path) -> dict[str, object]:
    """The body that has Triton's HTTP endpoint load a model, and so run its code."""
    code = f"open({str(mark)!r}, 'w').write('ran')\nclass TritonPythonModel:\n    pass\n"
    config = {
        "name": "evil", "backend": "python", "max_batch_size": 0,
        "input": [{"name": "i", "data_type": "TYPE_FP32", "dims": [1]}],
        "output": [{"name": "o", "data_type": "TYPE_FP32", "dims": [1]}],
    }  # fmt: skip
    parameters = {
        "config": json.dumps(config),
        "file:1/model.py": base64.b64encode(code.encode()).decode(),
    }
    return {"parameters": parameters}


def test_a_page_of_another_site_runs_nothing_through_triton(
    rebound_chromium: Browser, evil_site: Site, target: Stack, tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    page = rebound_chromium.new_page()
    page.goto(evil_site.url)
    for port in http_ports(target.settings).values():
        for path in (
            "v2/repository/models/evil/load",
            "v2/repository/models/conv_a/unload",
            "v2/models/conv_a/infer",
        ):
            send(page, f"http://127.0.0.1:{port}/{path}", "POST", evil_model(mark), cors=False)
    page.close()
    assert target.status()["triton"].state == "healthy"
    assert "conv_a@0" in target.status()["triton"].detail
    assert not mark.exists()


def test_a_page_of_another_site_reads_and_changes_nothing_in_prefect(
    rebound_chromium: Browser, evil_site: Site, target: Stack
) -> None:
    settings = target.settings
    (score,) = [d for d in deployments(settings) if d["name"] == "score"]
    runs = ask_prefect(settings, "/flow_runs/count", {})
    page = rebound_chromium.new_page()
    page.goto(evil_site.url)
    api = settings.prefect_api_url
    steps = {"pull_steps": [{"prefect.deployments.steps.run_shell_script": {"script": "id"}}]}
    scheduled = {"state": {"type": "SCHEDULED"}}
    for method, path, body in (
        ("POST", "deployments/filter", {}),
        ("PATCH", f"deployments/{score['id']}", steps),
        ("POST", f"deployments/{score['id']}/create_flow_run", scheduled),
    ):
        for cors in (True, False):
            answer = send(page, f"{api}/{path}", method, body, cors=cors)
            assert answer["text"] == "" or answer["type"] == "refused", answer
    page.close()
    (after,) = [d for d in deployments(settings) if d["name"] == "score"]
    assert after["pull_steps"] == score["pull_steps"]
    assert ask_prefect(settings, "/flow_runs/count", {}) == runs


def test_a_name_that_comes_to_mean_this_machine_opens_nothing(
    rebound_chromium: Browser, target: Stack
) -> None:
    """Under DNS rebinding the page and the service are of one origin: only `Host` tells."""
    settings = target.settings
    page = rebound_chromium.new_page()
    origin = f"http://{EVIL_HOST}:{settings.prefect_port}"
    page.goto(f"{origin}/")
    for path in ("/api/health", "/api/deployments/filter", "/ui-settings"):
        method = "POST" if path.endswith("filter") else "GET"
        answer = send(page, f"{origin}{path}", method, {} if method == "POST" else None, cors=True)
        assert answer["status"] == 400, (path, answer)
    page.close()


def test_a_page_of_another_site_reads_no_metrics(
    rebound_chromium: Browser, evil_site: Site, target: Stack
) -> None:
    page = rebound_chromium.new_page()
    page.goto(evil_site.url)
    for port in metrics_ports(target.settings):
        for cors in (True, False):
            answer = send(page, f"http://127.0.0.1:{port}/metrics", "GET", None, cors=cors)
            assert answer["text"] == "" or answer["type"] == "refused", answer
    page.close()


def test_a_name_that_comes_to_mean_this_machine_reads_no_metrics(
    rebound_chromium: Browser, target: Stack
) -> None:
    """A metrics server asks for no password: `Host` alone keeps a page out."""
    page = rebound_chromium.new_page()
    for port in metrics_ports(target.settings):
        origin = f"http://{EVIL_HOST}:{port}"
        page.goto(f"{origin}/")
        answer = send(page, f"{origin}/metrics", "GET", None, cors=True)
        assert answer["status"] == 421, answer
        assert "atlasloop_" not in answer["text"]
        assert "atlasloop_" not in page.content()
    page.close()
    metrics = httpx.get(
        f"http://127.0.0.1:{target.settings.attention_metrics_port}/metrics", trust_env=False
    )
    assert "atlasloop_attention_serving 1.0" in metrics.text


def test_a_page_of_another_site_reads_and_changes_nothing_in_review(
    rebound_chromium: Browser, evil_site: Site, target: Stack
) -> None:
    """Also while somebody is signed in there in the same browser."""
    settings = target.settings
    accounts = Accounts(settings.review_home / ACCOUNTS_FILE)
    accounts.add_user("visitor", "a password of some length", (Role.MANAGER,))
    context = rebound_chromium.new_context()
    context.request.post(
        f"{settings.review_url}/api/v1/session",
        data={"username": "visitor", "password": "a password of some length"},
    )
    assert context.request.get(f"{settings.review_url}/api/v1/session").ok
    page = context.new_page()
    page.goto(evil_site.url)
    with Catalog.open(settings.catalog_url) as catalog:
        before = AuditLog(catalog).page(0, 1)[0]
        for path, method, body in (
            ("api/v1/session", "GET", None),
            ("api/v1/audit", "GET", None),
            ("datastore/", "GET", None),
            ("api/v1/session", "DELETE", None),
            ("api/v1/queue", "POST", {"count": 1}),
            ("api/v1/queue/next", "POST", {}),
            ("activelearning/attention", "POST", {}),
        ):
            for cors in (True, False):
                answer = send(page, f"{settings.review_url}/{path}", method, body, cors=cors)
                assert answer["text"] == "" or answer["type"] == "refused", answer
        assert AuditLog(catalog).page(0, 1)[0] == before
    page.close()
    assert context.request.get(f"{settings.review_url}/api/v1/session").ok
    context.close()


def test_a_name_that_comes_to_mean_this_machine_is_signed_in_nowhere(
    rebound_chromium: Browser, target: Stack
) -> None:
    """Review's cookie belongs to the name that people open; under another there is none."""
    settings = target.settings
    page = rebound_chromium.new_page()
    origin = f"http://{EVIL_HOST}:{settings.review_port}"
    page.goto(f"{origin}/healthz")
    for path in ("/api/v1/session", "/api/v1/cases", "/api/v1/audit", "/datastore/", "/info/"):
        answer = send(page, f"{origin}{path}", "GET", None, cors=True)
        assert answer["status"] == 401, (path, answer)
    page.close()


def test_every_port_of_triton_wants_a_certificate(target: Stack) -> None:
    pid = target.status()["triton"].pid
    assert pid is not None
    listening = [
        connection.laddr.port
        for connection in psutil.Process(pid).net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening == [target.settings.triton_grpc_port]


def test_a_page_that_posts_to_the_attention_service_harms_nothing(
    rebound_chromium: Browser, evil_site: Site, target: Stack
) -> None:
    page = rebound_chromium.new_page()
    page.goto(evil_site.url)
    call = "atlasloop.attention.v1.AttentionService/GetInfo"
    for host in ("127.0.0.1", EVIL_HOST):
        url = f"http://{host}:{target.settings.attention_port}/{call}"
        for cors in (True, False):
            for _ in range(5):
                assert send(page, url, "POST", {"case_id": "x"}, cors=cors)["type"] == "refused"
    page.close()
    assert target.status()["attention"].state == "healthy"


def test_prefect_wants_its_password(target: Stack) -> None:
    settings = target.settings
    with httpx.Client(base_url=settings.prefect_api_url, trust_env=False) as client:
        assert client.post("/deployments/filter", json={}).status_code == 401
        assert client.post("/deployments/filter", json={}, auth=("a", "b")).status_code == 401
        assert client.post("/deployments/filter", json={}, auth=as_operator(settings)).is_success


def test_the_ui_of_prefect_asks_for_the_password_and_takes_it(
    rebound_chromium: Browser, target: Stack
) -> None:
    page = rebound_chromium.new_page()
    page.goto(target.settings.prefect_url)
    page.locator("input[type=password]").fill(prefect_auth(target.settings))
    page.keyboard.press("Enter")
    page.get_by_role("link", name="Deployments").click()
    page.locator("a[href*='/deployments/deployment/']").first.wait_for()
    page.close()


def test_triton_takes_only_clients_of_this_stack(target: Stack) -> None:
    files = target.settings.triton_client_tls
    strangers: tuple[dict[str, Any], ...] = (
        {},
        {"ssl": True, "root_certificates": str(files.authority)},
    )
    for arguments in strangers:
        with (
            triton.InferenceServerClient(target.triton_grpc, **arguments) as client,
            pytest.raises(InferenceServerException, match="UNAVAILABLE"),
        ):
            client.load_model("evil", client_timeout=10.0)
    with target.triton_client() as client:
        assert client.is_server_live()


def test_keys_are_their_owners_alone_and_in_no_process_list(target: Stack) -> None:
    settings = target.settings
    keys = [settings.prefect_auth_file, *settings.access_folder.glob("*.key")]
    assert len(keys) == 3
    for path in (*keys, settings.access_folder):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path.name
    hidden = [prefect_auth(settings).partition(":")[2]]
    hidden += [path.read_text().splitlines()[1] for path in settings.access_folder.glob("*.key")]
    for pid in target.pids():
        try:
            line = " ".join(psutil.Process(pid).cmdline())
        except psutil.NoSuchProcess:
            continue
        assert not [secret for secret in hidden if secret in line], line


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user")
def test_another_user_of_this_machine_reads_no_key(target: Stack) -> None:
    settings = target.settings
    keys = [settings.prefect_auth_file, *settings.access_folder.glob("*.key")]
    for key in keys:
        read = subprocess.run(
            ["cat", key], user=65534, group=65534, extra_groups=(), capture_output=True
        )
        assert read.returncode != 0, key.name
        assert read.stdout == b""


def test_grpc_ports_answer_no_browser(target: Stack) -> None:
    for port in (target.settings.triton_grpc_port, target.settings.attention_port):
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{port}/", trust_env=False, timeout=10)
    with (
        grpc.insecure_channel(target.triton_grpc) as channel,
        pytest.raises(grpc.FutureTimeoutError),
    ):
        grpc.channel_ready_future(channel).result(timeout=2)


def metrics_ports(settings: EmbeddedSettings) -> tuple[int, ...]:
    return settings.attention_metrics_port, settings.review_metrics_port


def deployments(settings: EmbeddedSettings) -> list[dict[str, Any]]:
    return list(ask_prefect(settings, "/deployments/filter", {}))
