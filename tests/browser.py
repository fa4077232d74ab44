"""Debian's Chromium under Playwright, for tests of the web page. No browser is downloaded."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    expect,
    sync_playwright,
)
from review_server import RunningReview

CHROMIUM = Path(os.environ.get("ATLASLOOP_CHROMIUM", "/usr/bin/chromium"))
FLAGS = (
    "--headless",
    "--no-sandbox",  # tests may run as root
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # WebGL2 in software: the same pixels with and without a graphics card.
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
)
# A case takes seconds to appear in software on a busy machine; in good order nothing takes as long.
PATIENCE_MS = 120_000


@dataclass
class Visit:
    """One browser profile at one site, and what it must not do.

    Attributes:
        context: cookies and databases of this profile; its tabs share them.
        url: the site; every request must go there.
        wrongs: requests elsewhere, scripts that failed, and what the content policy refused.
    """

    context: BrowserContext
    url: str
    wrongs: list[str] = field(default_factory=list)

    def tab(self, address: str = "/") -> Page:
        page = self.context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: self.wrongs.append(f"script: {error}"))
        page.on("console", self._note_console)
        page.goto(f"{self.url}{address}")
        return page

    def _note_console(self, message: ConsoleMessage) -> None:
        if "Content Security Policy" in message.text:
            self.wrongs.append(message.text)

    def note_request(self, url: str) -> None:
        if not url.startswith((f"{self.url}/", "data:", "blob:")):
            self.wrongs.append(f"request to {url}")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for a module. Not for the session: while Playwright runs, no other test in this
    process could run an event loop of its own."""
    if not CHROMIUM.is_file():
        pytest.skip(f"{CHROMIUM} is missing: run `make setup-browser`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        expect.set_options(timeout=PATIENCE_MS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Browser, site: RunningReview) -> Iterator[Visit]:
    """A visit of the service `site` of the test's module."""
    with visiting(chromium, site.url) as visit:
        yield visit


@contextlib.contextmanager
def visiting(chromium: Browser, url: str, **options: object) -> Iterator[Visit]:
    """A fresh profile at `url`; afterwards it has asked nobody else for anything."""
    size = {"width": 1280, "height": 800}
    context = chromium.new_context(**({"viewport": size} | options))  # type: ignore[arg-type]
    visit = Visit(context, url)
    context.on("request", lambda request: visit.note_request(request.url))
    yield visit
    context.close()
    assert visit.wrongs == []
