"""The pictures of the review page in `docs/images`, made again:

python tests/review_screenshots.py [FOLDER]        (make screenshots)
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from atlas_core.catalog import Catalog
from atlas_core.imaging import read_label, write_volume
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.records import Dataset
from browser import CHROMIUM, FLAGS, PATIENCE_MS
from oidc_provider import running_provider, settings_for
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from review_server import (
    PASSWORD,
    ReviewPlace,
    RunningReview,
    make_place,
    running_review,
    seed_case,
)
from scipy import ndimage

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
QUEUED = 8
"""Cases in the queue, fine enough to be looked at."""
OTHERS = {"Small-A": 14, "Small-B": 10}
"""Dataset → cases that no annotator is asked about, for the charts."""
SIZE = {"width": 1440, "height": 860}
MIDDLE = {"width": 1280, "height": 760}
SMALL = {"width": 960, "height": 560}
SHAPES = 6
"""Of one organ, at most."""
DRAWN_MS = 4000
API = "/api/v1"
OUTLINE = (
    (0.314, 0.299),
    (0.289, 0.318),
    (0.256, 0.353),
    (0.231, 0.406),
    (0.223, 0.467),
    (0.231, 0.527),
    (0.251, 0.573),
    (0.284, 0.611),
    (0.314, 0.637),
    (0.321, 0.467),
)
"""In the view of the case of rank 6: right and down, as parts of width and height."""


def more_cases(place: ReviewPlace) -> None:
    """The rest of the atlas, of which the queue is the top."""
    with Catalog.open(place.catalog_url) as catalog:
        seed = 100
        for name, cases in OTHERS.items():
            catalog.add_dataset(Dataset(name=name, title=name, licence="CC0-1.0"))
            for _ in range(cases):
                seed_case(catalog, place.store, seed, dataset=name, columns=48)
                seed += 1


def work(running: RunningReview, folder: Path) -> None:
    """Some cases are done, one waits for a second reader: an atlas in the middle of its life."""
    for user, ends in (("ann", ("revise", "skip", "ask")), ("bob", ("revise", "confirm"))):
        with running.client(user) as client:
            for end in ends:
                task = client.post(f"{API}/queue/next").raise_for_status().json()
                body: dict[str, Any] = {"seconds_spent": 420.0 + 90 * len(end)}
                path = {"ask": "second-reader"}.get(end, end)
                if end == "skip":
                    body["reason"] = "motion"
                elif end == "ask":
                    body["note"] = "Is the upper part of the stomach cut off?"
                elif end == "confirm":
                    body["visited"] = [one["organ"] for one in task["organs"]]
                elif end == "revise":
                    body["labels"] = {"liver": hand_in(client, task, folder)}
                client.post(f"{API}/tasks/{task['id']}/{path}", json=body).raise_for_status()
            case = client.get(f"{API}/cases").json()["cases"][2]["id"]
            flag = {"flagged": True, "reason": "second look"}
            client.put(f"{API}/cases/{case}/flag", json=flag).raise_for_status()


def hand_in(client: httpx.Client, task: dict[str, Any], folder: Path) -> str:
    """A liver that is a little larger than its pseudo label; returns its version."""
    case = client.get(f"{API}/tasks/{task['id']}").json()["case"]
    base = next(label["id"] for label in case["labels"] if label["organ"] == "liver")
    stored = folder / "labels.nii.gz"
    stored.write_bytes(client.get(case["label_map"]["url"]).raise_for_status().content)
    label = read_label(stored)
    liver = ndimage.binary_dilation(label.voxels == ABDOMEN_ATLAS["liver"].label, iterations=2)
    write_volume(folder / "liver.nii.gz", np.asfortranarray(liver, np.uint8), label.geometry)
    answer = client.post(
        f"{API}/cases/{case['id']}/labels",
        params={"organ": "liver", "base": base, "task": task["id"]},
        files={"label": ("liver.nii.gz", (folder / "liver.nii.gz").read_bytes())},
    )
    return str(answer.raise_for_status().json()["id"])


@contextmanager
def signed_in(browser: Browser, url: str, user: str) -> Iterator[Page]:
    """A page of somebody, at the queue."""
    context = browser.new_context(viewport=SIZE, color_scheme="dark")  # type: ignore[arg-type]
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS * 5)
    page.goto(url)
    page.get_by_label("User name").fill(user)
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    expect(page.get_by_role("table", name="Tasks")).to_be_visible()
    yield page
    context.close()


def case_is_there(page: Page) -> None:
    """Wait for the volumes."""
    expect(page.get_by_label("Crosshair")).to_have_text(re.compile("^voxel"))


def draw_the_missing_part(page: Page) -> None:
    """Around the part of the liver that the pseudo label lacks, in the axial view."""
    box = page.locator("canvas").bounding_box()
    assert box
    page.mouse.move(*_at(box, OUTLINE[0]))
    page.mouse.down()
    for corner in OUTLINE[1:]:
        page.mouse.move(*_at(box, corner), steps=8)
    page.mouse.up()


def _at(box: Any, corner: tuple[float, float]) -> tuple[float, float]:
    return box["x"] + box["width"] * corner[0], box["y"] + box["height"] * corner[1]


def take_entrance(browser: Browser, url: str, folder: Path) -> None:
    """The page for those who have not signed in."""
    context = browser.new_context(viewport=SMALL, color_scheme="dark")  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(url)
    page.get_by_label("User name").fill("ann")
    page.screenshot(path=folder / "review-sign-in.png")
    context.close()


def take_cases(page: Page, folder: Path) -> None:
    """A case, the keys, and a drawing."""
    page.keyboard.press("n")
    case_is_there(page)
    page.screenshot(path=folder / "review-case.png")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.screenshot(path=folder / "review-keys.png")
    page.keyboard.press("Escape")
    for key in ("a", "f"):
        page.keyboard.press(key)
    draw_the_missing_part(page)
    page.keyboard.press("t")  # without attention, whose yellow would lie over the pen's colour
    expect(page.get_by_label("Draft", exact=True)).to_have_text("Draft saved")
    page.screenshot(path=folder / "review-drawing.png")


def take_looks(page: Page, folder: Path) -> None:
    """What helps to see: what others say, differences, a live wire, a projection, surfaces. The
    pen's organ is a liver that is being drawn."""
    page.set_viewport_size(MIDDLE)  # type: ignore[arg-type]
    page.get_by_role("combobox", name="Difference").select_option(index=1)
    expect(page.get_by_role("status", name="Difference")).to_contain_text("ml")
    page.screenshot(path=folder / "review-differences.png")
    page.get_by_role("combobox", name="Difference").select_option(index=0)
    shape = page.get_by_role("status", name="Shape", exact=True)
    for _ in range(SHAPES):
        before = shape.inner_text()
        page.keyboard.press("h")
        expect(shape).not_to_have_text(before)
        if shape.inner_text().startswith("member"):
            break
    page.screenshot(path=folder / "review-members.png")
    page.keyboard.press("Shift+W")
    box = page.locator("canvas").bounding_box()
    assert box
    for corner in OUTLINE[::2]:
        page.mouse.click(*_at(box, corner))
    page.mouse.move(*_at(box, OUTLINE[-1]))
    page.screenshot(path=folder / "review-live-wire.png")
    page.keyboard.press("Escape")
    page.keyboard.press("v")
    page.keyboard.press("m")
    page.get_by_label("MIP").select_option(label="MIP whole volume")
    page.wait_for_timeout(DRAWN_MS)  # in turns; nothing says when all three are there
    page.screenshot(path=folder / "review-mip.png")
    page.get_by_label("MIP").select_option(label="off")
    page.keyboard.press("Shift+D")
    expect(page.get_by_label("Surfaces", exact=True).get_by_role("status")).to_have_text(
        re.compile(r"^\d+ organs$")
    )
    page.screenshot(path=folder / "review-surfaces.png")
    page.keyboard.press("Escape")


def make_small(folder: Path) -> None:
    """Each picture of the review page in 256 colours: a third of the bytes, and no difference that
    is seen."""
    for path in folder.glob("review-*.png"):
        with Image.open(path) as picture:
            small = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        small.save(path, optimize=True)


def take_atlas(page: Page, folder: Path) -> None:
    """Charts and contact sheets."""
    page.keyboard.press("Shift+A")
    expect(page.get_by_role("table", name="Annotator throughput")).to_be_visible()
    page.screenshot(path=folder / "review-atlas.png")
    page.set_viewport_size(MIDDLE)  # type: ignore[arg-type]
    page.keyboard.press("Shift+G")
    sheets = page.get_by_role("listbox", name="Cases").get_by_role("option")
    expect(sheets.first).to_have_attribute("aria-selected", "true")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(sheets.nth(2)).to_have_attribute("aria-selected", "true")
    page.wait_for_function(
        "() => [...document.querySelectorAll('main img')].every(i => i.complete && i.naturalWidth)"
    )
    page.screenshot(path=folder / "review-gallery.png")


def take_second_reading(page: Page, folder: Path) -> None:
    """What a second reader sees: the question, and the labels in force."""
    page.get_by_label("State").select_option("second_reading")
    rows = page.get_by_role("table", name="Tasks").get_by_role("row")
    expect(rows).to_have_count(2)
    page.get_by_role("table", name="Tasks").get_by_role("link").click()
    case_is_there(page)
    page.screenshot(path=folder / "review-second-reader.png")


def main() -> None:
    """See the module."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES
    with (
        tempfile.TemporaryDirectory() as name,
        running_provider() as issuer,
        sync_playwright() as playwright,
    ):
        place = make_place(Path(name) / "place", QUEUED, columns=128)
        more_cases(place)
        expect.set_options(timeout=PATIENCE_MS * 5)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        with running_review(place, **settings_for(issuer)) as running:
            work(running, Path(name))
            take_entrance(browser, running.url, folder)
            with signed_in(browser, running.url, "bob") as page:
                take_cases(page, folder)
                take_looks(page, folder)
            with signed_in(browser, running.url, "admin") as page:
                page.screenshot(path=folder / "review-queue.png")
                take_atlas(page, folder)
            with signed_in(browser, running.url, "rita") as page:
                take_second_reading(page, folder)
        browser.close()
    make_small(folder)


if __name__ == "__main__":
    main()
