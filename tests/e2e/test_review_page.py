"""The review page in a real browser against the real service: what is drawn is what is stored."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import pytest
from atlas_core.catalog import Catalog
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import write_volume
from browser import Visit, visiting
from oidc_provider import running_provider, settings_for
from playwright.sync_api import Browser, Page, Route, expect
from review_page import (
    PIXELS,
    STROKE_PX,
    axial_axis,
    begin,
    case_tab,
    draft_of,
    fetched,
    geometry_of,
    hand_in,
    in_force,
    label_map,
    log_in,
    look_at,
    mask_file,
    open_task,
    pixels,
    step_across,
    task_of,
)
from review_server import (
    ReviewPlace,
    RunningReview,
    make_place,
    running_review,
    seed_case,
)
from triton_server import REPOSITORY

WEB = REPOSITORY / "services" / "atlas_review" / "web"
STATIC = REPOSITORY / "services" / "atlas_review" / "static"
CASES = 9


def test_the_committed_build_is_of_these_sources() -> None:
    paths = {
        path.relative_to(WEB).as_posix(): path
        for path in WEB.rglob("*")
        if path.is_file() and "node_modules" not in path.relative_to(WEB).parts
    }
    digest = hashlib.sha256()
    for name, path in sorted(paths.items()):
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    built = json.loads((STATIC / "build.json").read_text())
    assert built == {"sources_sha256": digest.hexdigest()}, "run `make web`"


def test_the_build_is_whole_and_asks_nobody_else() -> None:
    index = (STATIC / "index.html").read_text()
    files = re.findall(r'(?:src|href)="([^"]+)"', index)
    assert files
    assert [name for name in files if not (STATIC / name.lstrip("/")).is_file()] == []
    assert "<style" not in index and not re.search(r"<script(?![^>]*\ssrc=)", index)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningReview]:
    """A service for this module: each test ends one of its tasks."""
    place = make_place(tmp_path_factory.mktemp("review-page"), cases=CASES, columns=48)
    with running_review(place, confirm_unvisited=True) as running:
        yield running


@pytest.fixture
def admin(site: RunningReview) -> Iterator[httpx.Client]:
    """The API beside the browser."""
    with site.client("admin") as client:
        yield client


@pytest.fixture
def bob(site: RunningReview) -> Iterator[httpx.Client]:
    """The API as the annotator bob: nobody else sees his drafts."""
    with site.client("bob") as client:
        yield client


def test_a_stroke_is_found_in_the_stored_label(
    visit: Visit, site: RunningReview, admin: httpx.Client, tmp_path: Path
) -> None:
    page = visit.tab()
    log_in(page, "ann")
    expect(page.get_by_role("table", name="Tasks").get_by_role("row")).to_have_count(CASES + 1)
    page.keyboard.press("n")
    tab = case_tab(page)
    number = int(page.url.rsplit("/", 1)[1])
    before = task_of(admin, number)
    assert (before["state"], before["assignee"], before["rank"]) == ("leased", "ann", 1)
    old_map = label_map(admin, before, tmp_path)

    tab.choose("pancreas")
    tab.press("a", "b")
    ends = tab.stroke()
    tab.expect_edited("pancreas")
    tab.press("Control+Enter")
    tab.expect_state("revised")

    after = task_of(admin, number)
    new = in_force(after, "pancreas")
    old = in_force(before, "pancreas")
    assert (new["source"], new["author"], new["base"]) == ("revised", "ann", old["id"])
    unchanged = [one for one in after["case"]["labels"] if one["organ"] != "pancreas"]
    assert unchanged == [one for one in before["case"]["labels"] if one["organ"] != "pancreas"]

    (path,) = site.place.store.root.glob(f"cases/{after['case_id']}/labels/pancreas/revised*.gz")
    image, ct = nib.load(path), nib.load(site.place.store.ct_path(after["case_id"]))
    assert np.array_equal(image.affine, ct.affine)
    assert image.get_data_dtype() == np.uint8
    drawn = np.asarray(image.dataobj) == 1
    was = old_map == old["value"]
    added = drawn & ~was
    assert not (was & ~drawn).any()
    assert set(old_map[added]) == {0}, "other organs stay as they are"
    assert all(drawn[voxel] for voxel in ends if old_map[voxel] == 0)
    assert np.count_nonzero(added) >= 4
    matrix = geometry_of(after).matrix[:3, :3]
    up = int(np.argmax(np.abs(matrix[2]) / np.linalg.norm(matrix, axis=0)))
    assert set(np.argwhere(added)[:, up]) == {ends[0][up]}, "one axial slice"
    assert after["history"][-1]["detail"]["seconds_spent"] > 0


def test_a_closed_tab_loses_nothing(visit: Visit, bob: httpx.Client, tmp_path: Path) -> None:
    before = label_map(bob, task_of(bob, 2), tmp_path)
    tab = open_task(visit, "bob", 2)
    _cut_off(tab.page)
    tab.choose("spleen")
    tab.press("a", "b")
    ends = tab.stroke()
    tab.expect_draft("Draft kept in this browser")
    expect(tab.page.get_by_role("alert")).to_contain_text("connection to the server is lost")
    assert bob.get("/api/v1/tasks/2/draft").status_code == 404
    tab.page.close()

    again = begin(case_tab(visit.tab("/#/task/2")))
    again.expect_edited("spleen")
    again.expect_draft("Draft saved")
    draft = fetched(bob, "/api/v1/tasks/2/draft", tmp_path).voxels
    changed = draft != before
    assert set(draft[changed]) == {8}
    assert all(changed[voxel] for voxel in ends if before[voxel] == 0)
    again.press("z")
    again.expect_edited()
    again.press("y")
    again.expect_edited("spleen")


def _cut_off(page: Page) -> None:
    """No draft reaches the server from this tab."""

    def refuse(route: Route) -> None:
        route.abort() if route.request.method == "PUT" else route.continue_()

    page.route("**/draft", refuse)


def test_a_draft_continues_on_another_computer(
    chromium: Browser, visit: Visit, site: RunningReview
) -> None:
    tab = open_task(visit, "rita", 3)
    tab.choose("aorta")
    tab.press("a", "b")
    tab.stroke()
    tab.expect_draft("Draft saved")
    with visiting(chromium, site.url) as elsewhere:
        open_task(elsewhere, "rita", 3).expect_edited("aorta")


def test_undo_goes_back_to_the_first_stroke(visit: Visit) -> None:
    tab = open_task(visit, "rita", 3)
    tab.page.get_by_role("button", name="Discard drawing").click()
    tab.page.get_by_role("button", name="Discard", exact=True).click()
    tab.expect_edited()
    tab.page.get_by_label("Keep other organs").uncheck()
    tab.choose("gall bladder")
    tab.press("a", "b")
    steps = 17
    x, y = tab.middle()
    for step in range(steps):
        tab.page.mouse.click(x - 128 + 16 * step, y)
    for _ in range(steps - 1):
        tab.press("z")
    expect(tab.page.get_by_text("edited").first).to_be_visible()
    tab.press("z")
    tab.expect_edited()
    expect(tab.page.get_by_role("button", name="Undo")).to_be_disabled()


def test_the_eraser_removes_only_the_pens_organ(
    visit: Visit, bob: httpx.Client, tmp_path: Path
) -> None:
    tab = open_task(visit, "bob", 7)
    tab.page.get_by_label("Keep other organs").uncheck()
    tab.choose("spleen")
    tab.press("a", "b")
    with tab.saving():
        ends = tab.stroke()
    drawn = draft_of(bob, 7, tmp_path)
    assert {int(drawn[voxel]) for voxel in ends} == {8}

    tab.page.get_by_label("Keep other organs").check()
    tab.choose("aorta")
    tab.press("e")
    tab.stroke()
    tab.choose("spleen")
    with tab.saving():
        tab.page.mouse.click(*tab.middle())  # one spot of the stroke
    erased = draft_of(bob, 7, tmp_path)
    changed = drawn != erased
    assert changed.any()
    assert set(drawn[changed]) <= {8, 1}, "only what the two organs had"
    assert set(erased[changed]) == {0}
    assert {int(erased[voxel]) for voxel in ends} == {8}, "aorta's eraser leaves the spleen"


def test_a_filled_outline_has_an_inside(visit: Visit, bob: httpx.Client, tmp_path: Path) -> None:
    tab = open_task(visit, "bob", 8)
    tab.page.get_by_label("Keep other organs").uncheck()
    tab.choose("pancreas")
    tab.press("a", "f")
    with tab.saving():
        middle = tab.outline()
    task = task_of(bob, 8)
    before, drawn = label_map(bob, task, tmp_path), draft_of(bob, 8, tmp_path)
    changed = np.argwhere(drawn != before)
    assert drawn[middle] == 6
    up = axial_axis(task)
    assert set(changed[:, up]) == {middle[up]}, "one slice"
    low, high = changed.min(axis=0), changed.max(axis=0)
    box = drawn[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))]
    assert np.mean(box == 6) > 0.9, "no hole in it"


def test_interpolation_fills_the_slices_between(
    visit: Visit, bob: httpx.Client, tmp_path: Path
) -> None:
    """Shape-based: between two outlines, what is in both is inside, what is in neither is not."""
    tab = open_task(visit, "bob", 9)
    tab.page.get_by_label("Keep other organs").uncheck()
    tab.choose("gall bladder")
    tab.press("a", "i")
    expect(tab.page.get_by_text("Draw this organ on two slices")).to_be_visible()
    tab.press("f")
    first = tab.outline()
    tab.press(*["ArrowUp"] * 4)
    second = tab.outline(STROKE_PX // 2)
    with tab.saving():
        tab.press("i")
    up = axial_axis(task_of(bob, 9))
    slices = np.moveaxis(draft_of(bob, 9, tmp_path) == 2, up, 0)
    start, end = first[up], second[up]
    step = 1 if end > start else -1
    assert abs(end - start) == 4
    both, either = slices[start] & slices[end], slices[start] | slices[end]
    assert both.any()
    areas = [int(slices[at].sum()) for at in range(start, end + step, step)]
    for at in range(start + step, end, step):
        assert not (both & ~slices[at]).any()
        assert not (slices[at] & ~either).any()
    assert areas == sorted(areas, reverse=True), "it shrinks from the larger to the smaller"
    with tab.saving():
        tab.press("z")
    undone = np.moveaxis(draft_of(bob, 9, tmp_path) == 2, up, 0)
    assert int(undone[end].sum()) == areas[-1]
    assert int(undone[start + step].sum()) < areas[1], "one step undoes it"


def test_a_second_reader_is_another_user_with_the_role(
    chromium: Browser, visit: Visit, site: RunningReview, admin: httpx.Client
) -> None:
    tab = open_task(visit, "bob", 8)
    tab.press("r")
    dialog = tab.page.get_by_role("dialog", name="Ask a second reader")
    dialog.get_by_role("textbox").fill("Is this a cavity?")
    dialog.get_by_role("button", name="Ask").click()
    tab.expect_state("second reading")
    waiting = task_of(admin, 8)
    assert (waiting["state"], waiting["second_reader"]) == ("second_reading", True)
    drawn = in_force(waiting, "pancreas")
    assert drawn["author"] == "bob", "the second reader sees what was drawn"
    for user in ("ann", "bob"):
        with visiting(chromium, site.url) as other:
            page = open_task(other, user, 8).page
            expect(page.get_by_role("alert")).to_contain_text("second reader")
            expect(page.get_by_role("button", name="Confirm case")).to_have_count(0)
    with visiting(chromium, site.url) as reader:
        reading = open_task(reader, "rita", 8)
        expect(reading.page.get_by_text("second reader asked")).to_be_visible()
        expect(reading.page.get_by_label("Asked by bob")).to_have_text("Is this a cavity?")
        reading.press("Shift+Enter")
        reading.expect_state("revised")  # through bob's drawing, which rita confirms
    done = task_of(admin, 8)
    assert (done["state"], done["assignee"]) == ("revised", "rita")


def test_what_was_not_looked_at_is_not_confirmed(chromium: Browser, tmp_path: Path) -> None:
    place = make_place(tmp_path / "place", cases=1, columns=32)
    with (
        running_review(place) as running,
        running.client("admin") as admin,
        visiting(chromium, running.url) as visit,
    ):
        tab = open_task(visit, "ann", 1)
        tab.press("Shift+Enter")
        dialog = tab.page.get_by_role("dialog", name="Not everything was looked at")
        dialog.get_by_role("button", name="Keep looking").click()
        assert task_of(admin, 1)["state"] == "leased"
        tab.choose("aorta")  # picked, and all its regions visited
        regions = tab.page.get_by_role("list", name="Attended regions").get_by_role("button")
        for region in regions.filter(has_text="Aorta").all():
            region.click()
        tab.page.get_by_role("button", name="Confirm case").click()
        dialog.get_by_role("button", name="Confirm the others").click()
        tab.expect_state("confirmed")
        verdicts = {one["organ"]: one["verdict"] for one in task_of(admin, 1)["organs"]}
        assert verdicts["aorta"] == "confirmed"
        assert None in verdicts.values()


def test_a_reader_reopens_a_finished_case(
    chromium: Browser, visit: Visit, site: RunningReview, admin: httpx.Client
) -> None:
    with visiting(chromium, site.url) as other:
        page = open_task(other, "ann", 8).page
        expect(page.get_by_role("alert")).to_contain_text("This task is revised")
        expect(page.get_by_role("button", name="Reopen")).to_have_count(0)
    tab = open_task(visit, "rita", 8)
    tab.page.get_by_role("button", name="Reopen").click()
    dialog = tab.page.get_by_role("dialog", name="Reopen this task")
    dialog.get_by_role("textbox").fill("second thoughts")
    dialog.get_by_role("button", name="Reopen").click()
    tab.expect_state("leased")
    expect(tab.page.get_by_role("button", name="Confirm case")).to_be_visible()
    again = task_of(admin, 8)
    assert (again["state"], again["assignee"]) == ("leased", "rita")
    (reopened,) = [one for one in again["history"] if one["action"] == "reopen"]
    assert (reopened["who"], reopened["detail"]) == ("rita", {"reason": "second thoughts"})


def test_a_lost_lease_is_shown_and_loses_nothing(chromium: Browser, tmp_path: Path) -> None:
    place = make_place(tmp_path / "place", cases=1, columns=48)
    with (
        running_review(place, lease_s=10) as running,
        running.client("bob") as bob,
        visiting(chromium, running.url) as visit,
    ):
        tab = open_task(visit, "ann", 1)
        tab.choose("spleen")
        tab.press("a", "b")
        with tab.saving():
            tab.stroke()
        first = task_of(bob, 1)["lease_expires_at"]
        with tab.page.expect_response("**/lease"):
            pass
        assert task_of(bob, 1)["lease_expires_at"] > first, "an open page renews its lease"
        assert bob.post("/api/v1/tasks/1/lease").status_code == 409

        tab.page.route("**/lease", lambda route: route.abort())
        while bob.post("/api/v1/tasks/1/lease").status_code == 409:
            time.sleep(0.2)
        tab.page.unroute("**/lease")
        banner = tab.page.get_by_role("alert").filter(has_text="Read-only")
        expect(banner).to_contain_text("Another annotator holds this case")
        expect(tab.page.get_by_role("button", name="Pen", exact=True)).to_be_disabled()
        expect(tab.page.get_by_role("button", name="Submit revision")).to_have_count(0)
        assert task_of(bob, 1)["assignee"] == "bob"
        tab.page.close()

        assert bob.delete("/api/v1/tasks/1/lease").status_code == 204
        again = begin(case_tab(visit.tab("/#/task/1")))
        again.expect_state("leased")
        again.expect_edited("spleen")


def test_signing_in_by_the_organisation(chromium: Browser, tmp_path: Path) -> None:
    place = ReviewPlace(tmp_path)
    place.store.root.mkdir(parents=True)
    with (
        running_provider() as issuer,
        running_review(place, **settings_for(issuer)) as running,
        visiting(chromium, running.url) as visit,
    ):
        page = visit.tab()
        expect(page.get_by_label("Password")).to_have_count(0)
        page.get_by_role("link", name="Log in with your organisation").click()
        expect(page.get_by_role("heading", name="Queue")).to_be_visible()
        expect(page.locator(".who")).to_contain_text("ida")
        away = f"request to {issuer}/authorize"
        assert [wrong.partition("?")[0] for wrong in visit.wrongs] == [away]
        visit.wrongs.clear()
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_role("link", name="Log in with your organisation")).to_be_visible()


def test_keys_do_what_the_overlay_lists(visit: Visit) -> None:
    page = visit.tab("/#/task/3")
    log_in(page, "rita")
    tab = case_tab(page)
    for key, name in (("2", "Liver"), ("3", "Bone"), ("1", "Soft tissue"), ("c", "Coronal")):
        tab.press(key)
        expect(page.get_by_role("button", name=name, exact=True)).to_have_attribute(
            "aria-pressed", "true"
        )
    tab.press("t")
    expect(page.get_by_label("Show attention")).not_to_be_checked()
    tab.press("a")
    here = tab.crosshair
    tab.press("ArrowUp")
    assert sum(abs(a - b) for a, b in zip(tab.crosshair, here, strict=True)) == 1
    tab.press("?")
    dialog = page.get_by_role("dialog", name="Keys")
    expect(dialog.get_by_text("submit revision")).to_be_visible()
    tab.press("Escape")
    expect(dialog).to_have_count(0)
    tab.press("Shift+Q")
    expect(page.get_by_role("table", name="Tasks")).to_be_visible()


def test_views_show_the_patient_as_stored(
    visit: Visit, site: RunningReview, admin: httpx.Client
) -> None:
    """Right is on the left, anterior or superior on top, whatever the order of the file."""
    task = task_of(admin, 3)
    geometry = geometry_of(task)
    ct = np.asanyarray(nib.load(site.place.store.ct_path(task["case_id"])).dataobj)
    tab = open_task(visit, "rita", 3)
    for view, across, up in (("a", 0, 1), ("c", 0, 2), ("s", 1, 2)):
        tab.press("v", view)
        step = step_across(tab, geometry, ct, 60)
        assert step[across] > 5 and step[up] > 5
        assert np.abs(np.delete(step, [across, up])).max() < 0.1, "the same slice"


def expect_pixels(page: Page, pixels: str, *, same: bool = True) -> None:
    page.wait_for_function(f"old => ({PIXELS} === old) === {str(same).lower()}", arg=pixels)


def test_windows_zoom_and_measures_by_the_mouse(visit: Visit) -> None:
    tab = open_task(visit, "rita", 3)
    page, (x, y) = tab.page, tab.middle()
    tab.press("v", "a")
    named = page.get_by_role("button", name="Soft tissue", exact=True)
    expect(named).to_have_attribute("aria-pressed", "true")
    page.mouse.move(x, y)
    page.mouse.down(button="right")
    page.mouse.move(x + 50, y, steps=3)
    page.mouse.up(button="right")
    expect(named).to_have_attribute("aria-pressed", "false")
    tab.press("1")
    expect(named).to_have_attribute("aria-pressed", "true")

    page.mouse.click(x + 50, y + 40)
    there, before = tab.crosshair, pixels(tab.page)
    tab.press("+", "+", "+", "+")
    expect_pixels(page, before, same=False)
    page.mouse.click(x + 50, y + 40)
    assert tab.crosshair == there, "the zoom is about the crosshair"
    page.mouse.move(x - 70, y - 30)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -200)
    page.keyboard.up("Control")
    page.mouse.click(x + 50, y + 40)
    assert tab.crosshair != there, "this zoom is about the pointer"

    tab.press("d")
    before = pixels(tab.page)
    page.mouse.move(x - 40, y)
    page.mouse.down()
    page.mouse.move(x + 40, y, steps=3)
    page.mouse.up()
    expect_pixels(page, before, same=False)
    tab.expect_edited()


def test_a_reload_keeps_slice_zoom_window_tool_and_pen(visit: Visit) -> None:
    tab = open_task(visit, "rita", 3)
    tab.choose("aorta")
    tab.press("c", "3", "]", "b", "+", "ArrowUp", "ArrowUp")
    there = tab.crosshair
    view = visit.context.pages[-1]
    before = pixels(tab.page)
    view.reload()
    again = case_tab(view)
    assert again.crosshair == there
    for name in ("Coronal", "Bone", "Pen"):
        button = view.get_by_role("button", name=name, exact=True)
        expect(button).to_have_attribute("aria-pressed", "true")
    expect(view.get_by_role("region", name="Active organ")).to_contain_text("aorta")
    expect(view.get_by_label("Pen size")).to_have_attribute("aria-valuetext", "2 mm")
    expect_pixels(view, before)


def test_the_next_case_is_hung_as_the_last(visit: Visit) -> None:
    look_at(visit, "rita", 3).press("c", "2")
    page = visit.tab("/#/task/2")
    case_tab(page)
    for name in ("Coronal", "Liver"):
        button = page.get_by_role("button", name=name, exact=True)
        expect(button).to_have_attribute("aria-pressed", "true")


def test_leaving_a_case_that_loads_ends_its_download(visit: Visit) -> None:
    page = visit.tab("/")
    log_in(page, "rita")
    expect(page.get_by_role("table", name="Tasks")).to_be_visible()
    page.route("**/ct.nii.gz*", lambda route: None)  # it never comes
    with page.expect_event("requestfailed", lambda request: "ct.nii.gz" in request.url):
        with page.expect_request("**/ct.nii.gz*"):
            page.evaluate("location.hash = '#/task/3'")
        page.keyboard.press("Shift+Q")
    expect(page.get_by_role("table", name="Tasks")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)


HOLD_THE_REST = """
() => {
  const fetched = window.fetch
  const released = new Promise((release) => (window.releaseTheRest = release))
  window.fetch = async (...asked) => {
    const response = await fetched(...asked)
    if (!response.url.includes('ct.nii.gz')) return response
    const bytes = new Uint8Array(await response.arrayBuffer())
    const body = new ReadableStream({
      async start(to) {
        for (let at = 0; at < bytes.length; at += 256) {
          if (at > 0.75 * bytes.length) await released
          to.enqueue(bytes.slice(at, at + 256))
        }
        to.close()
      },
    })
    return new Response(body, { headers: response.headers })
  }
}
"""
BRIGHT = """
() => {
  const canvas = document.querySelector('canvas')
  if (!canvas?.width) return false
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)
  return data.filter((value, n) => n % 4 === 0 && value > 40).length > 500
}
"""


def test_the_middle_of_a_ct_is_shown_before_its_last_bytes_are_there(
    visit: Visit, site: RunningReview, admin: httpx.Client
) -> None:
    task = task_of(admin, 3)
    ct = np.asanyarray(nib.load(site.place.store.ct_path(task["case_id"])).dataobj)
    axis = axial_axis(task)
    page = visit.tab("/")
    log_in(page, "rita")
    expect(page.get_by_role("table", name="Tasks")).to_be_visible()
    page.evaluate(HOLD_THE_REST)
    page.evaluate("location.hash = '#/task/3'")
    page.wait_for_function(BRIGHT)
    early = pixels(page)
    assert "voxel" not in page.get_by_label("Crosshair").inner_text()
    page.evaluate("window.releaseTheRest()")
    tab = case_tab(page)
    assert pixels(page) != early
    for key in ("ArrowUp", "ArrowDown"):  # to both ends of the file
        tab.press("a", *[key] * ct.shape[axis])
        voxel, _, hu = tab.place
        assert voxel[axis] in (0, ct.shape[axis] - 1)
        assert hu == ct[voxel]


def test_a_click_on_a_region_jumps_to_it(visit: Visit, admin: httpx.Client) -> None:
    case = task_of(admin, 3)["case"]
    regions: list[dict[str, Any]] = []
    for attention in case["attention"]:
        if attention["counts"]:
            url = f"/api/v1/cases/{case['id']}/regions?organ={attention['organ']}"
            regions += admin.get(url).raise_for_status().json()["regions"]
    regions.sort(key=lambda region: -region["region_ml"])
    tab = open_task(visit, "rita", 3)
    listed = tab.page.get_by_role("list", name="Attended regions").get_by_role("button")
    expect(listed).to_have_count(len(regions))
    sizes = [float(re.findall(r"([\d.]+) ml", text)[0]) for text in listed.all_inner_texts()]
    assert sizes == sorted(sizes, reverse=True)
    for number in (1, 0):
        listed.nth(number).click()
        assert tab.crosshair == tuple(regions[number]["peak_ijk"])


def test_a_shape_is_taken_in_a_region_and_as_a_whole(
    visit: Visit, bob: httpx.Client, admin: httpx.Client, tmp_path: Path
) -> None:
    """The pseudo label is seen and taken back, after somebody put another one into force."""
    task = task_of(admin, 4)
    pseudo = label_map(admin, task, tmp_path) == 5
    url = f"/api/v1/cases/{task['case_id']}/regions?organ=liver"
    region = admin.get(url).raise_for_status().json()["regions"][0]
    low, high = region["box_ijk"]
    box = tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))
    theirs = np.zeros(pseudo.shape, np.uint8, order="F")
    theirs[tuple(slice(max(a - 1, 0), b + 2) for a, b in zip(low, high, strict=True))] = 1
    write_volume(tmp_path / "theirs.nii.gz", theirs, geometry_of(task))
    labels = f"/api/v1/cases/{task['case_id']}/labels?organ=liver"
    mask = {"label": ("theirs.nii.gz", (tmp_path / "theirs.nii.gz").read_bytes())}
    base = in_force(task, "liver")["id"]
    admin.post(f"{labels}&base={base}", files=mask).raise_for_status()
    changed = label_map(admin, task_of(admin, 4), tmp_path)

    tab = open_task(visit, "bob", 4)
    listed = tab.page.get_by_role("list", name="Attended regions")
    listed.get_by_role("button", name=re.compile("liver")).first.click()
    shape = tab.page.get_by_label("Shape", exact=True)
    while not shape.inner_text().startswith("pseudo"):
        before = shape.inner_text()
        tab.press("h")
        expect(shape).not_to_have_text(before)
    with tab.saving():
        tab.press("u")
    drawn = draft_of(bob, 4, tmp_path)
    assert not np.array_equal(drawn, changed)
    assert np.array_equal(drawn[box] == 5, pseudo[box] & np.isin(changed[box], (0, 5)))
    outside = np.ones(drawn.shape, bool)
    outside[box] = False
    assert np.array_equal(drawn[outside], changed[outside])
    with tab.saving():
        tab.press("Shift+U")
    drawn = draft_of(bob, 4, tmp_path)
    assert np.array_equal(drawn == 5, pseudo & np.isin(changed, (0, 5)))
    tab.press("z", "z")
    tab.expect_edited()
    assert bob.delete("/api/v1/tasks/4/lease").status_code == 204


def test_verdicts_and_the_end_of_a_case(visit: Visit, admin: httpx.Client) -> None:
    tab = open_task(visit, "ann", 4)
    tab.choose("stomach")
    tab.page.get_by_label("Error type").select_option("missing_cavity")
    tab.page.get_by_role("button", name="Needs revision").click()
    expect(tab.page.get_by_text("needs revision", exact=True)).to_be_visible()
    stomach = next(one for one in task_of(admin, 4)["organs"] if one["organ"] == "stomach")
    assert (stomach["verdict"], stomach["error_type"]) == ("needs_revision", "missing_cavity")

    tab.press("Shift+Enter")
    refused = tab.page.get_by_role("alert").filter(has_text="stomach")
    expect(refused).to_contain_text("revise them, or change the verdict")
    refused.get_by_role("button", name="Dismiss").click()

    tab.choose("stomach")
    tab.page.get_by_role("button", name="Confirm organ").click()
    expect(tab.page.get_by_text("✓ confirmed")).to_be_visible()
    tab.press("Shift+Enter")
    tab.expect_state("confirmed")
    assert {one["verdict"] for one in task_of(admin, 4)["organs"]} == {"confirmed"}


def test_a_stale_base_shows_both_labels(visit: Visit, admin: httpx.Client, tmp_path: Path) -> None:
    tab = open_task(visit, "ann", 5)
    tab.choose("liver")
    tab.press("a", "b")
    tab.stroke()
    tab.expect_edited("liver")
    before = task_of(admin, 5)
    theirs = hand_in(admin, before, "liver", tmp_path).raise_for_status().json()

    tab.press("Control+Enter")
    dialog = tab.page.get_by_role("dialog", name="Somebody else changed liver while you worked")
    expect(dialog.get_by_role("row", name="In force now")).to_contain_text("admin")
    expect(dialog.get_by_role("row", name="Yours, kept beside it")).to_contain_text("ann")
    dialog.get_by_role("button", name="Keep mine on top of theirs").click()
    expect(tab.page.get_by_text("Submit again to put yours into force.")).to_be_visible()
    tab.press("Control+Enter")
    tab.expect_state("revised")

    case = before["case_id"]
    found = admin.get(f"/api/v1/cases/{case}/labels?organ=liver&source=revised").json()["labels"]
    assert [one["author"] for one in found] == ["admin", "ann", "ann"]
    assert [one["in_force"] for one in found] == [False, False, True]
    assert found[-1]["base"] == theirs["id"]


def test_a_mask_made_elsewhere(visit: Visit, admin: httpx.Client, tmp_path: Path) -> None:
    task = task_of(admin, 6)
    grid = geometry_of(task)
    larger = VolumeGeometry.from_array([side + 1 for side in grid.shape], grid.matrix)
    tab = open_task(visit, "bob", 6)
    tab.choose("gall bladder")
    field = tab.page.get_by_label("Mask of gall bladder made elsewhere")
    field.set_input_files(mask_file(larger, tmp_path, "larger"))
    refused = tab.page.get_by_role("alert").filter(has_text="expected")
    expect(refused).to_contain_text(str(larger.shape[0]))
    refused.get_by_role("button", name="Dismiss").click()

    field.set_input_files(mask_file(grid, tmp_path))
    tab.expect_edited("gall bladder")
    tab.page.get_by_role("button", name="Discard drawing").click()
    discarding = tab.page.get_by_role("dialog", name="Discard everything drawn in this case?")
    expect(discarding).to_contain_text("stays in force: gall bladder")
    discarding.get_by_role("button", name="Discard", exact=True).click()
    active = tab.page.get_by_role("region", name="Active organ")
    expect(active).to_contain_text("liver")  # the case is opened again, at its largest region
    tab.expect_edited()
    tab.choose("gall bladder")
    expect(active).to_contain_text("revised, bob")
    tab.press("Shift+Enter")
    tab.expect_state("revised")  # not confirmed: the mask is a revision
    done = task_of(admin, 6)
    label = in_force(done, "gall_bladder")
    assert (label["author"], label["voxels"]) == ("bob", 1)
    verdicts = {one["organ"]: one["verdict"] for one in done["organs"]}
    assert verdicts["gall_bladder"] == "needs_revision"


def test_wrong_password(visit: Visit) -> None:
    page = visit.tab()
    page.get_by_label("User name").fill("ann")
    page.get_by_label("Password").fill("not it")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("User name or password is wrong")


def test_queue_filters_and_skip(visit: Visit, admin: httpx.Client) -> None:
    page = visit.tab()
    log_in(page, "rita")
    rows = page.get_by_role("table", name="Tasks").get_by_role("row")
    page.get_by_label("Dataset").select_option("Others")
    expect(rows).to_have_count(2)
    page.get_by_label("Dataset").select_option("")
    expect(rows).to_have_count(CASES + 1)
    page.get_by_role("link", name=str(task_of(admin, 3)["case_id"])).click()
    tab = begin(case_tab(page))
    tab.press("x")
    page.get_by_role("dialog").get_by_label("Reason").fill("motion")
    page.get_by_role("button", name="Skip", exact=True).last.click()
    tab.expect_state("skipped")
    assert task_of(admin, 3)["history"][-1]["detail"]["reason"] == "motion"


def test_gallery_flags_with_one_key(visit: Visit, admin: httpx.Client) -> None:
    page = visit.tab("/#/gallery")
    log_in(page, "rita")
    sheets = page.get_by_role("listbox", name="Cases").get_by_role("option")
    expect(sheets).to_have_count(CASES)
    page.keyboard.press("ArrowRight")
    expect(sheets.nth(1)).to_have_attribute("aria-selected", "true")
    shown = page.locator("img.sheet")
    loaded = "image => image.complete && image.naturalWidth > 0"
    page.wait_for_function(f"() => ({loaded})(document.querySelector('img.sheet'))")
    expect(shown).to_have_attribute("alt", re.compile("^Contact sheet of "))
    page.keyboard.press("f")
    expect(page.get_by_role("status", name="Shown case")).to_contain_text("flagged")
    flagged = admin.get("/api/v1/cases?flagged=true").json()["cases"]
    assert [one["id"] for one in flagged] == [sheets.nth(1).get_attribute("aria-label")]
    page.get_by_role("combobox", name="Flag").select_option("true")
    expect(sheets).to_have_count(1)
    page.keyboard.press("f")
    expect(page.get_by_role("status", name="Shown case")).not_to_contain_text("flagged")
    assert admin.get("/api/v1/cases?flagged=true").json()["total"] == 0


def test_state_of_the_atlas(visit: Visit, admin: httpx.Client) -> None:
    page = visit.tab("/#/atlas")
    log_in(page, "rita")
    sizes = page.get_by_role("img", name=re.compile("^Attention size per dataset"))
    expect(sizes.locator("circle")).to_have_count(CASES)
    statistics = admin.get("/api/v1/statistics").json()
    sizes_by_dataset = statistics["attention_by_dataset"].values()
    marked = sum(one["in_top_share"] for cases in sizes_by_dataset for one in cases)
    expect(sizes.locator("circle.marked")).to_have_count(marked)
    expect(page.get_by_role("img", name="Cases by state")).to_contain_text("skipped")
    expect(page.get_by_role("img", name=re.compile("^Organ volumes"))).to_contain_text("liver")
    expect(page.get_by_role("table", name="Annotator throughput")).to_contain_text("ann")


def test_a_manager_opens_tasks(visit: Visit, site: RunningReview, admin: httpx.Client) -> None:
    """The last test: it adds a case."""
    with Catalog.open(site.place.catalog_url) as catalog:
        case = seed_case(catalog, site.place.store, 99, columns=32)
    page = visit.tab()
    log_in(page, "rita")
    rows = page.get_by_role("table", name="Tasks").get_by_role("row")
    expect(rows).to_have_count(CASES + 1)
    expect(page.get_by_role("form", name="Open tasks")).to_have_count(0)
    page.get_by_role("button", name="Log out").click()
    log_in(page, "admin")
    form = page.get_by_role("form", name="Open tasks")
    form.get_by_label("Amount").fill("100")
    form.get_by_role("button", name="Open tasks").click()
    said = page.get_by_text(f"1 tasks opened, {CASES} were there already.")
    expect(said).to_be_visible()
    expect(rows).to_have_count(CASES + 2)
    tasks = admin.get("/api/v1/queue?state=open").json()["tasks"]
    assert case.id in {one["case_id"] for one in tasks}
