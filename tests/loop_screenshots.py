"""The pictures of the loop in `docs/images`, made again out of a run of the loop demo: Prefect's
form of the flow `iterate`, what a run leaves there, and the page of the evaluation.

python tests/loop_screenshots.py [FOLDER [HOME]]        (make screenshots)

HOME is where `atlasloop --home HOME loop-demo` has run; without one it runs now, for 20 minutes.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from atlas_embedded import stack
from atlas_embedded.access import prefect_auth
from atlas_embedded.settings import EmbeddedSettings
from atlas_flows.demos import demo_settings, use_stack
from atlas_flows.demos.loop_arm import FULL
from atlas_flows.demos.loop_demo import demo_root, run_loop_demo
from atlas_flows.settings import Places
from browser import CHROMIUM, FLAGS, PATIENCE_MS
from playwright.sync_api import Browser, Page, expect, sync_playwright
from prefect_api import ask_prefect

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
SIZE = {"width": 1280, "height": 860}
FORM_HEIGHT = 2600
"""Prefect scrolls inside its page: a picture of the whole form needs a window as high as it."""

OPAQUE = """element => {
    for (; element; element = element.parentElement)
        if (getComputedStyle(element).opacity !== "1") return false;
    return true;
}"""
"""Prefect lets its pages fade in, which Playwright takes for visible from the first moment."""

SEED, ARM = 8, "disagreement"


@contextmanager
def prefect_after(home: Path) -> Iterator[EmbeddedSettings]:
    """Prefect with its deployments, on what the demo in `home` has left."""
    root = demo_root(Places.read(home), FULL, SEED)
    settings = demo_settings(root / ARM, ("prefect", "flows"), models_dir=root / "M0")
    use_stack(settings)
    try:
        stack.up(settings)
        yield settings
    finally:
        stack.down(settings)


def identity(settings: EmbeddedSettings, path: str) -> str:
    """Id of what Prefect's API has at `path`."""
    return str(ask_prefect(settings, f"/{path}")["id"])


def new_page(browser: Browser, height: int, scheme: str = "light") -> Page:
    size = {"width": SIZE["width"], "height": height}
    context = browser.new_context(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    return page


def sign_in(page: Page, settings: EmbeddedSettings) -> None:
    """Give Prefect's UI its password; the profile keeps it."""
    page.goto(settings.prefect_url)
    page.locator("input[type=password]").fill(prefect_auth(settings))
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name="Deployments")).to_be_visible()


def take_form(browser: Browser, settings: EmbeddedSettings, folder: Path) -> None:
    """The form that starts the loop."""
    page = new_page(browser, FORM_HEIGHT)
    sign_in(page, settings)
    site = settings.prefect_api_url.removesuffix("/api")
    found = identity(settings, "deployments/name/iterate/iterate")
    page.goto(f"{site}/deployments/deployment/{found}/run")
    expect(page.get_by_text("patience_s").first).to_be_visible()
    page.screenshot(path=folder / "prefect-form.png")


def take_artifacts(browser: Browser, settings: EmbeddedSettings, folder: Path) -> None:
    """What a run left: the list, and the pages that people look at."""
    page = new_page(browser, SIZE["height"])
    sign_in(page, settings)
    site = settings.prefect_api_url.removesuffix("/api")
    page.goto(f"{site}/artifacts")
    expect(page.get_by_text("attention-sizes").first).to_be_visible()
    page.screenshot(path=folder / "prefect-artifacts.png")
    for key in ("attention-sizes", "score-ranking", "dice-unet"):
        page.goto(f"{site}/artifacts/key/{key}")
        page.get_by_role("link", name=re.compile("^[0-9a-f]{8}$")).first.click()
        last = page.get_by_role("button", name="Show raw data")
        expect(last).to_be_visible()
        page.wait_for_function(OPAQUE, arg=last.element_handle())
        page.screenshot(path=folder / f"prefect-{key}.png")


def take_pages(browser: Browser, output: Path, folder: Path) -> None:
    """The arms side by side, and the top of an arm's evaluation."""
    for name, picture in (("report", "loop-arms"), (ARM, "evaluation")):
        page = new_page(browser, 1500)
        page.goto((output / f"{name}.html").as_uri())
        page.screenshot(path=folder / f"{picture}.png")


def main() -> None:
    """See the module."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        home = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(name) / "home"
        output = Path(name) / "output"
        run_loop_demo(Places.read(home), output, seed=SEED)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        expect.set_options(timeout=PATIENCE_MS)
        with prefect_after(home) as settings:
            take_form(browser, settings, folder)
            take_artifacts(browser, settings, folder)
        take_pages(browser, output, folder)
        browser.close()


if __name__ == "__main__":
    main()
