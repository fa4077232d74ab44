"""What the tools of the page do to voxels, against NumPy and SciPy, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np
import pytest
from atlas_core.organs import ABDOMEN_ATLAS
from browser import Visit
from numpy.typing import NDArray
from playwright.sync_api import expect
from review_page import CaseTab, axial_axis, draft_of, hand_in, label_map, open_task, task_of
from review_server import RunningReview, make_place, running_review
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra

Mask = NDArray[np.bool_]
Slice = NDArray[np.float64]
Pixel = tuple[int, int]

COLOURED = """([r, g, b]) => {
  const canvas = document.querySelector('canvas')
  const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)
  const near = (n, value) => Math.abs(data[n] - value) < 60
  let count = 0
  for (let n = 0; n < data.length; n += 4) count += near(n, r) && near(n + 1, g) && near(n + 2, b)
  return count
}"""
ONLY_MINE, ONLY_THEIRS, WIRE = [255, 225, 77], [196, 0, 224], [255, 226, 138]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningReview]:
    """A service for this module."""
    place = make_place(tmp_path_factory.mktemp("review-tools"), cases=3, columns=48)
    with running_review(place) as running:
        yield running


@pytest.fixture
def bob(site: RunningReview) -> Iterator[httpx.Client]:
    """The API as the annotator who draws."""
    with site.client("bob") as client:
        yield client


@dataclass
class Bench:
    """A case that is drawn in, and what the server knows of it."""

    tab: CaseTab
    client: httpx.Client
    task: int
    folder: Path
    hu: NDArray[np.float64]

    def before(self) -> NDArray[np.uint8]:
        return label_map(self.client, task_of(self.client, self.task), self.folder)

    def drawn(self) -> NDArray[np.uint8]:
        """The map as it is drawn now; waits until the server has it."""
        return draft_of(self.client, self.task, self.folder)

    @property
    def spacing(self) -> tuple[float, ...]:
        return tuple(task_of(self.client, self.task)["case"]["spacing_mm"])

    def press(self, name: str | re.Pattern[str]) -> None:
        self.tab.page.get_by_role("button", name=name, exact=isinstance(name, str)).click()


@pytest.fixture
def bench(visit: Visit, site: RunningReview, bob: httpx.Client, tmp_path: Path) -> Bench:
    """The first case, without anything drawn."""
    tab = open_task(visit, "bob", 1)
    if tab.page.get_by_role("button", name="Discard drawing").count():
        tab.page.get_by_role("button", name="Discard drawing").click()
        tab.page.get_by_role("button", name="Discard", exact=True).click()
        tab.expect_edited()
    tab.page.get_by_text("Reshape", exact=True).click()
    ct = nib.load(site.place.store.ct_path(task_of(bob, 1)["case_id"]))
    return Bench(tab, bob, 1, tmp_path, np.asanyarray(ct.dataobj).astype(float))


def label_of(organ: str) -> int:
    return int(ABDOMEN_ATLAS[organ].label)


def near(mask: Mask, spacing: tuple[float, ...], mm: float) -> Mask:
    found: Mask = ndimage.distance_transform_edt(~mask, sampling=spacing) <= mm + 1e-6
    return found


def gaussian(mask: Mask, spacing: tuple[float, ...], mm: float) -> Mask:
    sigma = [mm / side for side in spacing]
    blurred = ndimage.gaussian_filter(mask.astype(float), sigma, mode="nearest", truncate=3.0)
    found: Mask = blurred > 0.5
    return found


def test_grow_shrink_and_smooth_are_scipys(bench: Bench) -> None:
    mm, liver = 12.0, label_of("liver")
    bench.tab.choose("liver")
    bench.tab.page.get_by_label("Millimetres", exact=True).fill(str(mm))
    before, spacing = bench.before(), bench.spacing
    organ, free = before == liver, np.isin(before, (0, liver))
    expected = {
        "Grow": near(organ, spacing, mm) & free,
        "Shrink": organ & ~near(~organ, spacing, mm),
        "Smooth": gaussian(organ, spacing, mm) & free,
    }
    for name, wanted in expected.items():
        with bench.tab.saving():
            bench.press(name)
        drawn = bench.drawn()
        assert np.array_equal(drawn == liver, wanted), name
        assert np.array_equal(drawn[~organ & ~wanted], before[~organ & ~wanted])
        volume = bench.tab.page.get_by_label("Volume", exact=True).inner_text()
        assert volume == f"{wanted.sum() * np.prod(spacing) / 1000:.2f} ml"
        bench.tab.press("z")
        bench.tab.expect_edited()


def test_a_ball_within_a_range_of_hounsfield_units(bench: Bench) -> None:
    page, tab = bench.tab.page, bench.tab
    before, spacing, pancreas = bench.before(), bench.spacing, label_of("pancreas")
    tab.choose("pancreas")
    tab.press("a", "b", "Shift+B")
    x, y = tab.middle()
    page.mouse.move(x, y)
    size = page.get_by_label("Pen size")
    page.keyboard.down("Shift")
    while size.get_attribute("aria-valuetext") != "40 mm":
        page.mouse.wheel(0, -100)
    page.keyboard.up("Shift")
    page.get_by_label("Only in the HU range").check()
    page.get_by_label("Lowest HU").fill("20")
    page.get_by_label("Highest HU").fill("80")
    with tab.saving():
        start, end = tab.stroke()
    changed = bench.drawn() != before
    places = np.moveaxis(np.indices(before.shape), 0, -1) * np.array(spacing)
    a, b = (np.array(one) * np.array(spacing) for one in (start, end))
    along = np.clip((places - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
    distance = np.linalg.norm(places - a - along[..., None] * (b - a), axis=-1)
    wanted = (distance <= 20) & (bench.hu >= 20) & (bench.hu <= 80) & (before == 0)
    assert np.array_equal(changed, wanted)
    assert set(bench.drawn()[changed]) == {pancreas}
    assert len(set(np.argwhere(changed)[:, axial_axis(task_of(bench.client, 1))])) > 1


def test_a_region_grows_from_a_spot(bench: Bench) -> None:
    tab, page, stomach = bench.tab, bench.tab.page, label_of("stomach")
    before, spacing = bench.before(), bench.spacing
    tab.choose("stomach")
    page.get_by_label("Keep other organs").uncheck()
    tab.press("q")
    page.mouse.click(*tab.middle())
    seed = tab.crosshair
    told = page.get_by_role("status", name="Region")
    expect(told).to_contain_text("± 20 HU")
    tab.press("]")
    expect(told).to_contain_text("± 30 HU")
    places = (np.moveaxis(np.indices(before.shape), 0, -1) - np.array(seed)) * np.array(spacing)
    wanted = np.abs(bench.hu - bench.hu[seed]) <= 30
    wanted &= np.linalg.norm(places, axis=-1) <= 40
    parts, _ = ndimage.label(wanted)
    found = (parts == parts[seed]) & (parts > 0)
    ml = found.sum() * np.prod(spacing) / 1000
    expect(told).to_contain_text(f"{ml:.1f} ml")
    tab.expect_edited()
    with tab.saving():
        tab.press("Enter")
    assert np.array_equal(bench.drawn() == stomach, found | (before == stomach))


def test_parts_holes_and_scissors(bench: Bench) -> None:
    tab, page, liver = bench.tab, bench.tab.page, label_of("liver")
    tab.choose("liver")
    page.get_by_label("Keep other organs").uncheck()
    before = bench.before()
    # A spot far from the liver, and a hole inside of it.
    page.get_by_role("list", name="Attended regions").get_by_role("button").first.click()
    tab.choose("liver")
    tab.press("a", "b")
    x, y = tab.middle()
    with tab.saving():
        page.mouse.click(x - 150, y - 150)
        page.mouse.click(x + 100, y + 100)
    spotted = bench.drawn() == liver
    for name in ("Largest part", "Remove islands < 1 ml"):
        parts, count = ndimage.label(spotted)
        sizes = ndimage.sum_labels(spotted, parts, range(1, count + 1))
        least = sizes.max() if name == "Largest part" else 1000 / np.prod(bench.spacing)
        kept = np.isin(parts, [n + 1 for n, size in enumerate(sizes) if size >= least])
        bench.press(name)
        if np.array_equal(kept, spotted):
            expect(page.get_by_text("That changes nothing in this organ.").first).to_be_visible()
            continue
        with tab.saving():
            pass
        assert np.array_equal(bench.drawn() == liver, kept), name
        tab.press("z")
    bench.press("Grow")  # whatever was spotted: no hole stays after this
    with tab.saving():
        bench.press("Fill holes")
    filled = bench.drawn() == liver
    assert np.array_equal(filled, ndimage.binary_fill_holes(filled))

    tab.press("Shift+E")
    with tab.saving():
        tab.outline(120)
    cut = bench.drawn()
    gone = filled & (cut != liver)
    up = axial_axis(task_of(bench.client, 1))
    assert gone.any() and set(cut[gone]) == {0}
    assert len(set(np.argwhere(gone)[:, up])) > 1, "on every slice"
    column = gone.any(axis=up)
    assert not (cut == liver).any(axis=up)[column].any()
    assert np.array_equal(cut[~filled], np.where(filled, 0, cut)[~filled])
    assert before.shape == cut.shape


def test_locks_slices_and_undo_of_one_organ(bench: Bench) -> None:
    tab, page = bench.tab, bench.tab.page
    pancreas, aorta = label_of("pancreas"), label_of("aorta")
    up = axial_axis(task_of(bench.client, 1))
    page.get_by_label("Keep other organs").uncheck()
    page.get_by_label("Lock liver").check()
    tab.choose("pancreas")
    tab.press("a", "b", "]", "]", "]", "]", "]")
    before = bench.before()
    with tab.saving():
        tab.stroke()
    at = tab.crosshair[up]
    drawn = bench.drawn()
    assert np.array_equal(drawn == label_of("liver"), before == label_of("liver"))
    tab.press("Shift+ArrowUp")
    there = tab.crosshair[up]
    assert abs(there - at) == 1
    with tab.saving():
        pass
    drawn = bench.drawn()
    here, copy = (np.take(drawn == pancreas, one, axis=up) for one in (at, there))
    locked = np.take(before == label_of("liver"), there, axis=up)
    assert np.array_equal(copy, here & ~locked)

    tab.choose("aorta")
    with tab.saving():
        tab.stroke(below_px=60)
    with_aorta = bench.drawn()
    tab.choose("pancreas")
    with tab.saving():
        tab.press("Shift+Z", "Shift+Z")
    undone = bench.drawn()
    lost = (before == aorta) & (drawn != aorta)  # that the pancreas took, and gives back
    assert np.array_equal(undone == pancreas, (before == pancreas) & (with_aorta != aorta))
    assert np.array_equal((undone == aorta) & ~lost, (with_aorta == aorta) & ~lost)


def cheapest_way(
    grey: Slice, spacing: NDArray[np.float64], start: Pixel, end: Pixel
) -> list[Pixel]:
    """SciPy's cheapest way over Sobel's edges, within 80 mm of its start."""
    more = np.ceil(80 / spacing).astype(int)
    low = np.maximum(np.array(start) - more, 0)
    high = np.minimum(np.array(start) + more + 1, grey.shape)
    part = grey[low[0] : high[0], low[1] : high[1]]
    slopes = [ndimage.sobel(part, axis, mode="nearest") / 8 / spacing[axis] for axis in (0, 1)]
    costs = 0.02 + 1 / (1 + (np.hypot(*slopes) / 0.04) ** 2)
    places = np.arange(part.size).reshape(part.shape)
    weights, ones, others = [], [], []
    for a, b in ((0, 1), (1, 0), (1, 1), (1, -1)):
        here = np.s_[: part.shape[0] - a, max(-b, 0) : part.shape[1] - max(b, 0)]
        there = np.s_[a:, max(b, 0) : part.shape[1] + min(b, 0)]
        length = np.hypot(a * spacing[0], b * spacing[1])
        weights.append(length * (costs[here] + costs[there]).ravel() / 2)
        ones.append(places[here].ravel())
        others.append(places[there].ravel())
    edges = np.concatenate(weights), (np.concatenate(ones), np.concatenate(others))
    graph = coo_array(edges, shape=(part.size, part.size)).tocsr()
    first, at = (int(places[tuple(np.array(one) - low)]) for one in (start, end))
    _, before = dijkstra(graph, directed=False, indices=first, return_predecessors=True)
    way = [at]
    while at != first:
        at = int(before[at])
        way.append(at)
    return [
        (int(a + low[0]), int(b + low[1]))
        for a, b in zip(*np.unravel_index(way, part.shape), strict=True)
    ]


def test_the_live_wire_takes_the_cheapest_ways_along_edges(bench: Bench) -> None:
    tab, page, pancreas = bench.tab, bench.tab.page, label_of("pancreas")
    up = axial_axis(task_of(bench.client, 1))
    before = bench.before()
    tab.choose("pancreas")
    page.get_by_label("Keep other organs").uncheck()
    tab.press("a", "l", "t", "Shift+W")
    yellow = page.evaluate(COLOURED, WIRE)
    x, y = tab.middle()
    clicks = []
    for right, down in ((-60, -40), (50, -50), (90, 90), (60, 45), (-40, 55)):
        page.mouse.click(x + right, y + down)
        clicks.append(tab.crosshair)
        if (right, down) == (90, 90):
            tab.press("Backspace")
            clicks.pop()
    page.wait_for_function(
        f"([colour, least]) => ({COLOURED})(colour) > least", arg=[WIRE, yellow + 50]
    )
    tab.expect_edited()
    with tab.saving():
        tab.press("Enter")
    drawn = bench.drawn()
    at = clicks[0][up]
    grey = np.clip((np.take(bench.hu, at, axis=up) - 40) / 400 + 0.5, 0, 1)
    spacing = np.delete(np.array(bench.spacing), up)
    corners = [tuple(np.delete(click, up).tolist()) for click in clicks]
    outline = np.zeros(grey.shape, bool)
    for start, end in zip(corners, [*corners[1:], corners[0]], strict=True):
        for pixel in cheapest_way(grey, spacing, start, end):
            outline[pixel] = True
    wanted = ndimage.binary_fill_holes(outline) | np.take(before == pancreas, at, axis=up)
    here = np.take(drawn == pancreas, at, axis=up)
    assert wanted.sum() > 1.5 * outline.sum()
    # Where two ways cost the same to the last digits of float32, either may be taken.
    assert (here ^ wanted).sum() <= 0.05 * wanted.sum()
    elsewhere = np.delete(drawn, at, axis=up), np.delete(before, at, axis=up)
    assert np.array_equal(*elsewhere)

    page.mouse.click(x, y)
    page.mouse.click(x + 50, y)
    tab.press("Escape")
    page.wait_for_function(
        f"([colour, most]) => ({COLOURED})(colour) <= most", arg=[WIRE, yellow + 10]
    )
    tab.press("z")
    tab.expect_edited()


def test_differences_are_coloured_and_counted(bench: Bench) -> None:
    tab, page = bench.tab, bench.tab.page
    tab.choose("pancreas")
    page.get_by_label("Keep other organs").uncheck()
    tab.press("a", "l", "t", "b", "]", "]", "]", "]", "]")
    page.get_by_role("combobox", name="Difference").select_option("mine")
    told = page.get_by_label("Difference", exact=True).last
    expect(told).to_contain_text("only my drawing: 0.0 ml")
    with tab.saving():
        tab.stroke()
    mine = (bench.drawn() == label_of("pancreas")) & (bench.before() != label_of("pancreas"))
    expect(told).to_contain_text(
        f"only my drawing: {mine.sum() * np.prod(bench.spacing) / 1000:.1f}"
    )
    assert page.evaluate(COLOURED, ONLY_MINE) > 20
    page.get_by_role("combobox", name="Difference").select_option("")
    page.wait_for_function(f"colour => ({COLOURED})(colour) === 0", arg=ONLY_MINE)


def test_the_label_in_force_is_compared_before_one_decides(
    bench: Bench, site: RunningReview
) -> None:
    tab, page = bench.tab, bench.tab.page
    tab.choose("liver")
    tab.press("a", "b")
    tab.stroke()
    tab.expect_edited("liver")
    with site.client("admin") as admin:
        hand_in(admin, task_of(admin, 1), "liver", bench.folder).raise_for_status()
    tab.press("Control+Enter")
    page.get_by_role("button", name="Show the difference").click()
    told = page.get_by_label("Difference", exact=True).last
    expect(told).to_contain_text("only theirs: ")
    assert page.evaluate(COLOURED, ONLY_MINE) > 20
