"""Pages and states by axe-core's rules, light and dark; and the page in German."""

from __future__ import annotations

import re
from collections.abc import Iterator
from secrets import token_hex

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import Visit, visiting
from playwright.sync_api import Browser, Page, expect
from ports import free_port
from review_page import begin, case_tab, log_in
from review_server import RunningReview, make_place, running_review


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningReview]:
    """A service for this module; nobody answers prompts."""
    place = make_place(tmp_path_factory.mktemp("review-axe"), cases=2, columns=32)
    with running_review(place, nninteractive_url=f"http://127.0.0.1:{free_port()}") as running:
        yield running


def violations(page: Page) -> list[str]:
    """What axe-core says against the page as it is now."""
    return [
        f"{one['id']}: {node['html'][:160]} {node['any'][:1] and node['any'][0]['message']}"
        for one in Axe().run(page).response["violations"]
        for node in one["nodes"]
    ]


def states(page: Page) -> Iterator[str]:
    """Walks through the pages and yields a name of each state."""
    expect(page.get_by_label("User name")).to_be_visible()
    yield "login"
    page.get_by_label("User name").fill("ann")
    page.get_by_label("Password").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_be_visible()
    yield "login refused"
    page.get_by_role("button", name="Dismiss").click()  # it lies over what comes next
    log_in(page, "admin")
    expect(page.get_by_role("table", name="Tasks")).to_be_visible()
    yield "queue"
    page.keyboard.press("Shift+A")
    expect(page.get_by_role("heading", name="State of the atlas")).to_be_visible()
    yield "atlas"
    page.keyboard.press("Shift+G")
    sheets = page.get_by_role("listbox", name="Cases").get_by_role("option")
    expect(sheets.first).to_have_attribute("aria-selected", "true")
    yield "gallery"
    page.keyboard.press("Enter")
    tab = case_tab(page)
    yield "looking"
    begin(tab)
    page.get_by_role("button", name="Confirm case").click()
    expect(page.get_by_role("dialog", name="Not everything was looked at")).to_be_visible()
    yield "not everything was looked at"
    tab.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)
    page.get_by_text("Reshape", exact=True).click()
    tab.press("h", "b")
    tab.stroke()
    yield "drawing"
    page.get_by_label("MIP").select_option(label="MIP whole volume")
    yield "MIP"
    tab.press("Shift+W")
    page.mouse.click(*tab.middle())
    yield "live wire"
    tab.press("Escape", "q")
    page.mouse.click(*tab.middle())
    expect(page.get_by_role("button", name="Take region")).to_be_enabled()
    yield "region"
    page.get_by_role("combobox", name="Difference").select_option(index=1)
    yield "difference"
    tab.press("Shift+P", "Shift+N")
    page.mouse.click(*tab.middle())
    refusal = page.get_by_role("alert").filter(has_text="nnInteractive")
    expect(refusal).to_be_visible()
    yield "prompts, and a refusal"
    refusal.get_by_role("button", name="Dismiss").click()
    comment = f"Here? {token_hex(4)}"  # both themes walk over the same case
    page.get_by_role("textbox", name="Comment", exact=True).fill(comment)
    page.get_by_role("button", name="Comment", exact=True).click()
    expect(page.get_by_text(comment)).to_be_visible()
    yield "comment"
    tab.press("Shift+D")
    expect(page.get_by_label("Surfaces", exact=True).get_by_role("status")).to_have_text(
        re.compile(r"\d+ organs")
    )
    yield "surfaces"
    tab.press("Escape")
    for key, name in (
        ("?", "Keys"),
        ("x", "Skip this case"),
        ("r", "Ask a second reader"),
    ):
        expect(page.locator("dialog")).to_have_count(0)  # below one, keys of the case mean nothing
        tab.press(key)
        expect(page.get_by_role("dialog", name=name)).to_be_visible()
        yield name
        tab.press("Escape")
    page.get_by_role("button", name="Discard drawing").click()
    discard = page.get_by_role("dialog", name="Discard everything")
    expect(discard).to_be_visible()
    yield "discard"
    discard.get_by_role("button", name="Discard").click()
    tab.expect_edited()  # nothing, for whoever walks here next


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(visit: Visit, theme: str) -> None:
    page = visit.tab()
    page.get_by_label("Theme").select_option(theme)
    found = {name: violations(page) for name in states(page)}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


def test_the_page_speaks_german_and_remembers(
    chromium: Browser, visit: Visit, site: RunningReview
) -> None:
    with visiting(chromium, site.url, locale="de-AT") as german:
        page = german.tab()
        expect(page.get_by_role("button", name="Anmelden")).to_be_visible()
        assert page.locator("html").get_attribute("lang") == "de"
        page.get_by_label("Benutzername").fill("ann")
        page.get_by_label("Sprache").select_option("en")
        expect(page.get_by_role("button", name="Log in")).to_be_visible()
    page = visit.tab()
    page.get_by_label("Language").select_option("de")
    page.get_by_label("Benutzername").fill("ann")
    page.get_by_label("Passwort").fill("correct horse battery")
    page.keyboard.press("Enter")
    page.get_by_role("table", name="Aufgaben").get_by_role("link").first.click()
    expect(page.get_by_role("button", name="An diesem Fall arbeiten")).to_be_visible()
    page.keyboard.press("?")
    keys = page.get_by_role("dialog", name="Tasten").inner_text()
    assert "Überarbeitung abgeben" in keys
    assert re.findall(r"\b(?:the|next|previous|undo|region to)\b", keys) == []


def test_a_banner_leaves_the_line_below_the_views_in_sight(visit: Visit) -> None:
    page = visit.tab("/#/task/2")
    log_in(page, "ann")
    begin(case_tab(page))
    page.context.set_offline(True)
    page.keyboard.press("r")
    page.get_by_role("dialog").get_by_role("textbox").fill("?")
    page.get_by_role("dialog").get_by_role("button", name="Ask").click()
    expect(page.get_by_role("alert")).to_have_count(1)
    expect(page.get_by_role("alert")).to_contain_text("connection to the server is lost")
    foot = page.get_by_label("Crosshair", exact=True).bounding_box()
    size = page.viewport_size
    assert foot and size and foot["y"] + foot["height"] <= size["height"]
    page.context.set_offline(False)
    expect(page.get_by_role("alert")).to_have_count(0)
