"""Looking, working, two windows, taking back, and talking about a case: in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest
from browser import Visit, visiting
from playwright.sync_api import Browser, expect
from ports import free_port
from review_page import (
    begin,
    case_tab,
    fetched,
    in_force,
    label_map,
    log_in,
    look_at,
    open_task,
    task_of,
)
from review_server import PASSWORD, RunningReview, make_place, running_review


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningReview]:
    """A service for this module."""
    place = make_place(tmp_path_factory.mktemp("review-windows"), cases=5, columns=32)
    with running_review(place, confirm_unvisited=True) as running:
        yield running


@pytest.fixture
def ann(site: RunningReview) -> Iterator[httpx.Client]:
    """The API as the annotator who draws."""
    with site.client("ann") as client:
        yield client


def test_looking_takes_no_lease_from_the_gallery_or_the_list(
    visit: Visit, ann: httpx.Client
) -> None:
    page = visit.tab("/#/gallery")
    log_in(page, "admin")
    page.get_by_role("link", name="Open", exact=True).click()
    tab = case_tab(page)
    number = int(page.url.rsplit("/", 1)[1])
    tab.expect_state("open")
    expect(page.get_by_text("only looking")).to_be_visible()
    expect(page.get_by_role("button", name="Pen", exact=True)).to_be_disabled()
    expect(page.get_by_role("button", name="Submit revision")).to_have_count(0)
    assert task_of(ann, number)["assignee"] is None
    tab.press("p")
    tab.expect_state("leased")
    expect(page.get_by_role("button", name="Pen", exact=True)).to_be_enabled()
    assert task_of(ann, number)["assignee"] == "admin"


def test_a_second_window_is_told_and_both_drawings_stay(
    visit: Visit, ann: httpx.Client, tmp_path: Path
) -> None:
    before = label_map(ann, task_of(ann, 2), tmp_path)
    first = open_task(visit, "ann", 2)
    first.choose("aorta")
    first.press("a", "b")
    with first.saving():
        first.stroke()
    second = case_tab(visit.tab("/#/task/2"))
    told = second.page.get_by_role("alert")
    expect(told).to_contain_text("in another window")
    expect(second.page.get_by_role("button", name="Pen", exact=True)).to_be_disabled()
    begin(second)
    second.expect_edited("aorta")  # goes on from what the first has drawn
    second.choose("spleen")
    second.press("a", "b")
    with second.saving():
        second.stroke(below_px=20)
    second.expect_edited("aorta", "spleen")

    # The first window still draws until it hears of it: nothing of that is lost either.
    first.choose("pancreas")
    with first.saving():
        first.stroke(below_px=-20)
    drafts = ann.get("/api/v1/tasks/2/drafts").json()["drafts"]
    drawn = [fetched(ann, one["url"], tmp_path).voxels for one in drafts]
    assert len({one["page"] for one in drafts}) == 2
    new = [set(np.unique(one[one != before]).tolist()) - {0} for one in drawn]
    assert sorted(map(sorted, new)) == [[1, 6], [1, 8]]

    second.page.reload()
    dialog = second.page.get_by_role("dialog", name="This case was drawn in more than one window")
    dialog.get_by_role("button", name="This window").click()
    case_tab(second.page)
    second.expect_edited("aorta", "spleen")
    first.page.reload()
    again = case_tab(first.page)
    expect(first.page.get_by_role("alert")).to_contain_text("in another window")
    begin(again)
    again.expect_edited("aorta", "pancreas")


def test_a_killed_service_comes_back_under_an_open_case(chromium: Browser, tmp_path: Path) -> None:
    """What was drawn before, and while nobody was there, is handed in to the next one."""
    place, port = make_place(tmp_path / "place", cases=1, columns=48), free_port()
    with ExitStack() as stack:
        killed = stack.enter_context(running_review(place, port=port))
        visit = stack.enter_context(visiting(chromium, killed.url))
        tab = open_task(visit, "ann", 1)
        tab.choose("pancreas")
        tab.press("a", "b")
        with tab.saving():
            tab.stroke()
        killed.process.kill()
        killed.process.wait()
        tab.choose("aorta")
        tab.stroke(below_px=20)
        lost = tab.page.get_by_role("alert").filter(has_text="connection to the server is lost")
        expect(lost).to_be_visible()
        tab.expect_edited("aorta", "pancreas")
        running = stack.enter_context(running_review(place, port=port))
        expect(lost).to_have_count(0)
        tab.expect_draft("Draft saved")
        tab.press("Control+Enter")
        tab.expect_state("revised")
        with running.client("bob") as bob:
            task = task_of(bob, 1)
            labels = f"/api/v1/cases/{task['case_id']}/labels"
            for organ in ("aorta", "pancreas"):
                new = in_force(task, organ)
                assert (new["source"], new["author"]) == ("revised", "ann")
                now, before = (
                    fetched(bob, f"{labels}/{one}.nii.gz", tmp_path).voxels != 0
                    for one in (new["id"], new["base"])
                )
                assert (now & ~before).any(), f"the stroke is missing from the {organ}"


def test_a_closed_window_keeps_nobody_waiting(visit: Visit) -> None:
    first = open_task(visit, "bob", 3)
    first.page.goto("about:blank")
    second = case_tab(visit.tab("/#/task/3"))
    expect(second.page.get_by_role("button", name="Confirm case")).to_be_visible()


def test_a_skip_warns_and_is_taken_back_with_its_drawing(visit: Visit, ann: httpx.Client) -> None:
    tab = open_task(visit, "ann", 4)
    tab.choose("aorta")
    tab.press("a", "b")
    tab.stroke()
    tab.expect_edited("aorta")
    tab.press("x")
    dialog = tab.page.get_by_role("dialog", name="Skip this case")
    expect(dialog).to_contain_text("not handed in: aorta")
    dialog.get_by_label("Reason").fill("motion")
    dialog.get_by_role("button", name="Skip", exact=True).click()
    tab.expect_state("skipped")
    expect(tab.page.get_by_text("your drawing is kept until")).to_be_visible()
    tab.page.get_by_role("button", name="Take back").click()
    tab.expect_state("leased")
    tab.expect_edited("aorta")
    assert task_of(ann, 4)["history"][-1]["action"] == "take back"


def test_verdicts_are_taken_back_one_by_one(visit: Visit, ann: httpx.Client) -> None:
    tab = open_task(visit, "ann", 4)
    tab.choose("stomach")
    tab.page.get_by_role("button", name="Needs revision").click()
    expect(tab.page.get_by_text("needs revision", exact=True)).to_be_visible()
    tab.page.get_by_role("button", name="Take back the verdict on stomach").click()
    expect(tab.page.get_by_text("needs revision", exact=True)).to_have_count(0)
    assert {one["verdict"] for one in task_of(ann, 4)["organs"]} == {None}


def test_readers_talk_about_places(chromium: Browser, visit: Visit, site: RunningReview) -> None:
    tab = look_at(visit, "ann", 5)
    tab.choose("stomach")
    here = tab.crosshair
    tab.page.get_by_role("textbox", name="Comment").fill("<b>Is this a cavity?</b>")
    tab.page.get_by_label("About").select_option("here")
    tab.page.get_by_role("button", name="Comment", exact=True).click()
    said = tab.page.get_by_role("list", name="Comments").get_by_role("listitem")
    expect(said).to_contain_text("<b>Is this a cavity?</b>")
    with visiting(chromium, site.url) as elsewhere:
        other = look_at(elsewhere, "rita", 5)
        other.choose("liver")
        other.press("ArrowUp", "ArrowUp")
        assert other.crosshair != here
        other.page.get_by_role("button", name="Show where ann means").click()
        assert other.crosshair == here
        expect(other.page.get_by_role("region", name="Active organ")).to_contain_text("stomach")


def test_a_refusal_is_in_the_language_of_the_page(
    chromium: Browser, site: RunningReview, ann: httpx.Client
) -> None:
    with visiting(chromium, site.url, locale="de-DE") as german:
        page = german.tab("/#/task/5")
        page.get_by_label("Benutzername").fill("bob")
        page.get_by_label("Passwort").fill(PASSWORD)
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="An diesem Fall arbeiten")).to_be_visible()
        ann.post("/api/v1/tasks/5/lease").raise_for_status()
        page.keyboard.press("p")
        told = page.get_by_role("alert").first
        expect(told).to_contain_text(
            "emand anderes arbeitet an diesem Fall (erhalten ann); nehmen Sie den nächsten Fall"
        )
