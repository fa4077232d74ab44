"""Click prompts in a real browser, with nnInteractive's own server behind the review service."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from atlas_core.imaging import read_cropped
from atlas_core.organs import ABDOMEN_ATLAS
from browser import Visit
from nninteractive_server import RunningNnInteractive, running_nninteractive
from playwright.sync_api import expect
from review_page import CaseTab, axial_axis, draft_of, geometry_of, label_map, open_task, task_of
from review_server import RunningReview, make_place, running_review

TOLD = "Shape of the prompts"
LIVER = int(ABDOMEN_ATLAS["liver"].label)


@pytest.fixture(scope="module")
def server(nninteractive_model: Path) -> Iterator[RunningNnInteractive]:
    """One that may be stopped."""
    with running_nninteractive(nninteractive_model) as running:
        yield running


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, server: RunningNnInteractive
) -> Iterator[RunningReview]:
    """A service for this module."""
    place = make_place(tmp_path_factory.mktemp("review-prompts"), cases=3, columns=48)
    with running_review(place, nninteractive_url=server.url) as running:
        yield running


@pytest.fixture
def bob(site: RunningReview) -> Iterator[httpx.Client]:
    with site.client("bob") as client:
        yield client


def told(tab: CaseTab, count: int) -> float:
    """Millilitres of the shape of so many prompts, once it is there."""
    expect(tab.page.get_by_label(TOLD)).to_have_text(re.compile(rf" ml from {count} prompts$"))
    return float(tab.page.get_by_label(TOLD).inner_text().split()[0])


def test_what_was_pointed_at_is_taken_into_the_organ(
    visit: Visit, bob: httpx.Client, tmp_path: Path
) -> None:
    """A point inside, a scribble outside, a box and a lasso; the same asked of the API is what is
    added to the organ, where no other organ is."""
    tab = open_task(visit, "bob", 1)
    page = tab.page
    before = label_map(bob, task := task_of(bob, 1), tmp_path)
    tab.choose("liver")
    tab.press("a", "Shift+P")
    x, y = tab.middle()
    page.mouse.click(x, y)
    told(tab, 1)
    point = {"kind": "point", "positive": True, "path": [tab.crosshair]}
    tab.press("Shift+K", "Shift+N")
    expect(page.get_by_label("Kind of prompt")).to_have_value("scribble")
    ends = tab.stroke(below_px=60)
    told(tab, 2)
    tab.press("Shift+K", "Shift+N")
    ends_of_box = tab.stroke(below_px=-80)  # as flat as a box can be: a row of voxels
    ml = told(tab, 3)
    box = {"kind": "box", "positive": True, "path": ends_of_box}
    tab.press("Shift+K")
    tab.outline()
    told(tab, 4)
    tab.press("Backspace")
    assert told(tab, 3) == ml
    with tab.saving():
        tab.press("Enter")
    expect(page.get_by_label(TOLD)).to_contain_text("Choose the tool")
    tab.expect_edited("liver")
    drawn = draft_of(bob, 1, tmp_path)

    up = axial_axis(task)
    across = next(axis for axis in (0, 1, 2) if ends[0][axis] != ends[1][axis])
    step = 1 if ends[1][across] > ends[0][across] else -1
    passed = [list(ends[0]) for _ in range(abs(ends[1][across] - ends[0][across]) + 1)]
    for n, voxel in enumerate(passed):
        voxel[across] += n * step
    scribble = {"kind": "scribble", "positive": False, "path": passed}
    assert ends[0][up] == ends_of_box[0][up]
    answer = bob.post(
        f"/api/v1/cases/{task['case_id']}/prompts", json={"prompts": [point, scribble, box]}
    )
    (tmp_path / "mask.nii.gz").write_bytes(answer.raise_for_status().content)
    mask = np.asarray(read_cropped(tmp_path / "mask.nii.gz", geometry_of(task)), np.bool_)
    added = mask & (before == 0)
    assert added.any()
    assert np.array_equal(drawn == LIVER, (before == LIVER) | added)
    assert np.array_equal(drawn[~added], before[~added])
    tab.press("z")
    tab.expect_edited()


def test_it_replaces_the_organ_and_belongs_to_one_organ(
    visit: Visit, bob: httpx.Client, tmp_path: Path
) -> None:
    tab = open_task(visit, "bob", 2)
    page = tab.page
    tab.choose("liver")
    tab.press("a", "Shift+P")
    page.mouse.click(*tab.middle())
    told(tab, 1)
    tab.choose("stomach")  # what was meant for the liver is gone
    expect(page.get_by_label(TOLD)).to_contain_text("Choose the tool")
    tab.choose("liver")
    page.mouse.click(*tab.middle())
    ml = told(tab, 1)
    with tab.saving():
        page.get_by_role("button", name="Replace the organ").click()
    drawn = draft_of(bob, 2, tmp_path)
    before = label_map(bob, task_of(bob, 2), tmp_path)
    voxel_ml = float(np.prod(task_of(bob, 2)["case"]["spacing_mm"])) / 1000
    kept = (drawn != before) & (before != LIVER)
    assert (drawn[kept] == LIVER).all()
    assert 0 < (drawn == LIVER).sum() * voxel_ml <= ml + 0.1


def test_a_server_that_is_gone_is_said_and_nothing_is_lost(
    visit: Visit, server: RunningNnInteractive
) -> None:
    """Runs last: it stops the server."""
    tab = open_task(visit, "ann", 3)
    page = tab.page
    tab.press("a", "Shift+P")
    page.mouse.click(*tab.middle())
    ml = told(tab, 1)
    server.stop()
    x, y = tab.middle()
    page.mouse.click(x + 20, y)
    expect(page.get_by_role("alert")).to_contain_text("nnInteractive server does not work")
    assert told(tab, 1) == ml
    page.get_by_role("button", name="Dismiss").click()
    tab.press("Enter")
    expect(page.get_by_role("list", name="Organs").get_by_text("edited")).to_have_count(1)
