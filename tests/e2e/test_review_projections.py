"""Maximum intensity projections and surfaces of labels, against NumPy, in a real browser."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from atlas_core.organs import ABDOMEN_ATLAS
from browser import Visit
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import expect
from review_page import CaseTab, axial_axis, label_map, look_at, task_of
from review_server import RunningReview, make_place, running_review
from scipy import ndimage

WINDOW_LOW, WINDOW_WIDTH = -160, 400
"""The soft tissue window, in HU."""
PIXEL = """([x, y]) => {
  const canvas = document.querySelector('#views')
  const {left, top} = canvas.getBoundingClientRect()
  const at = [x - left, y - top].map((one) => Math.round(one * devicePixelRatio))
  return canvas.getContext('2d').getImageData(...at, 1, 1).data[0]
}"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningReview]:
    """A service for this module."""
    with running_review(make_place(tmp_path_factory.mktemp("looks"), cases=1, columns=48)) as site:
        yield site


@pytest.fixture
def tab(visit: Visit, site: RunningReview) -> CaseTab:
    return look_at(visit, "bob", 1)


def grey(hu: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.clip((hu - WINDOW_LOW) / WINDOW_WIDTH, 0, 1) * 255


@pytest.mark.parametrize("slab", ["MIP 20 mm", "MIP whole volume"])
def test_a_slab_shows_its_highest_values(tab: CaseTab, site: RunningReview, slab: str) -> None:
    page = tab.page
    with site.client("bob") as bob:
        task = task_of(bob, 1)
    hu = np.asanyarray(nib.load(site.place.store.ct_path(task["case_id"])).dataobj).astype(float)
    up = axial_axis(task)
    tab.press("a", "l", "t")
    page.get_by_label("MIP").select_option(label=slab)
    x, y = tab.middle()
    page.mouse.click(x, y)
    at = tab.crosshair[up]
    more = int(10 // task["case"]["spacing_mm"][up]) if slab == "MIP 20 mm" else hu.shape[up]
    part = np.take(hu, range(max(at - more, 0), min(at + more + 1, hu.shape[up])), axis=up)
    projected, alone = grey(part.max(axis=up)), grey(np.take(hu, at, axis=up))
    # Between voxels the canvas mixes those around.
    low, high = (one(projected, 3) for one in (ndimage.minimum_filter, ndimage.maximum_filter))
    seen, others = [], 0
    for right, down in np.ndindex(5, 5):
        place = x + 45 * (right - 2), y + 45 * (down - 2)
        page.mouse.click(*place)
        voxel = tuple(np.delete(tab.crosshair, up))
        page.wait_for_function(
            f"([at, low, high]) => low <= ({PIXEL})(at) && ({PIXEL})(at) <= high",
            arg=[place, low[voxel] - 3, high[voxel] + 3],
        )
        seen.append(page.evaluate(PIXEL, place))
        others += not low[voxel] - 3 <= alone[voxel] <= high[voxel] + 3
    assert others > 1, "what is seen is not the slice alone"
    assert len(set(seen)) > 5


def test_surfaces_are_the_labels_seen_from_the_front(
    tab: CaseTab, site: RunningReview, tmp_path: Path
) -> None:
    page = tab.page
    with site.client("bob") as bob:
        task = task_of(bob, 1)
        labels = label_map(bob, task, tmp_path)
    tab.press("Shift+D")
    organs = len(np.unique(labels)) - 1
    expect(page.get_by_label("Surfaces", exact=True).get_by_role("status")).to_have_text(
        f"{organs} organs"
    )
    screen = page.get_by_role("application", name="Surfaces of the organs")
    picture = Image.open(io.BytesIO(screen.screenshot()))
    pixels = np.asarray(picture.convert("RGB")).astype(float)

    axes = nib.aff2axcodes(np.array(task["case"]["affine"]))
    front = next(n for n, letter in enumerate(axes) if letter in "AP")
    spacing = np.array(task["case"]["spacing_mm"])
    silhouette = (labels > 0).any(axis=front)
    mm2 = silhouette.sum() * np.prod(np.delete(spacing, front))
    extent = [np.ptp(one) + 1 for one in np.nonzero(labels)] * spacing
    scale = pixels.shape[0] / np.linalg.norm(extent)  # the camera shows the sphere around all
    drawn = pixels.max(axis=2) > 20
    assert drawn.sum() == pytest.approx(mm2 * scale**2, rel=0.06)

    def across(organ: str) -> float:
        colour = np.array([int(ABDOMEN_ATLAS[organ].colour[n : n + 2], 16) for n in (1, 3, 5)])
        bright = pixels / np.maximum(np.linalg.norm(pixels, axis=2, keepdims=True), 1)
        alike = drawn & (bright @ (colour / np.linalg.norm(colour)) > 0.99)
        assert alike.sum() > 100, organ
        return float(np.nonzero(alike)[1].mean() / pixels.shape[1])

    assert across("liver") < 0.5 < across("spleen"), "the patient's right is on the left"
    before = screen.screenshot()
    screen.focus()
    page.keyboard.press("ArrowLeft")
    assert screen.screenshot() != before
    page.get_by_role("button", name="Close").click()
    expect(screen).to_have_count(0)
