"""OHIF beside Orthanc on the same CT and in the same browser, in three planes (MPR)."""

from __future__ import annotations

import copy
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from atlas_core.imaging import Volume
from bench.canvas_digest import DIGEST_OF

# The PACS of the tests, and the viewer that they serve beside it.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from ohif import ohif_beside
from orthanc import running as running_orthanc
from pacs_series import hospital_series
from playwright.sync_api import Page
from pydicom import Dataset
from pydicom.uid import generate_uid

VIEWS: Final = 3
PRESETS: Final = "23"
"""Keys of two windows: lung and liver."""

WATCH: Final = """
() => {
  DIGEST_OF
  const watch = { first: null, all: null }
  watch.digests = () => [...document.querySelectorAll('.cornerstone-canvas')].map(digestOf)
  const frame = () => {
    const drawn = watch.digests().filter(Boolean).length
    if (drawn > 0) watch.first ??= performance.now()
    if (drawn >= VIEWS) watch.all ??= performance.now()
    if (watch.all === null) requestAnimationFrame(frame)
  }
  requestAnimationFrame(frame)
  watch.after = (kind) => {
    const before = String(watch.digests())
    watch.change = new Promise((done) => {
      addEventListener(kind, () => {
        const began = performance.now()
        const look = () => {
          if (String(watch.digests()) !== before) done((performance.now() - began) / 1000)
          else requestAnimationFrame(look)
        }
        requestAnimationFrame(look)
      }, { capture: true, once: true })
    })
  }
  window.watch = watch
}
""".replace("DIGEST_OF", DIGEST_OF).replace("VIEWS", str(VIEWS))


def measured(
    ct: Volume,
    dist: Path,
    new_page: Callable[[str], Page],
    memory_gb: Callable[[], float],
    runs: int,
) -> dict[str, float]:
    """Seconds as `bench_review_page` takes them of the page: to the first picture, to all three
    views, for another window and for the next slice (of one view; the page moves all).

    Args:
        dist: ``package/dist`` of the npm package ``@ohif/app``.
        new_page: opens a page with an initial script in a new browser.
        memory_gb: what that browser's renderer and GPU processes hold.
        runs: repetitions, of which the median counts.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        series = as_series(ct)
        with running_orthanc(folder) as server:
            server.put(series, folder / "series")
            with ohif_beside(server, dist) as address:
                page = new_page(f"({WATCH})()")
                study = series[0].StudyInstanceUID
                opened = [_opened(page, address, study) for _ in range(3)]
                hide = page.get_by_text("Confirm and hide")
                if hide.count():
                    hide.click()
                axial = page.locator(".cornerstone-canvas").first
                axial.click()
                window = [
                    _changed(page, "keydown", partial(page.keyboard.press, key))
                    for key in (PRESETS * runs)[:runs]
                ]
                axial.hover()
                slices = [
                    _changed(page, "wheel", lambda: page.mouse.wheel(0, 100)) for _ in range(runs)
                ]
                return {
                    "first_picture_s": _median([first for first, _ in opened]),
                    "all_views_s": _median([all_views for _, all_views in opened]),
                    "window_s": _median(window),
                    "slice_s": _median(slices),
                    "memory_gb": round(memory_gb(), 2),
                }


def _opened(page: Page, address: str, study: str) -> tuple[float, float]:
    page.goto("about:blank")
    page.goto(f"{address}/viewer?StudyInstanceUIDs={study}&hangingprotocolId=mpr")
    page.wait_for_function("() => watch.all !== null", polling="raf")
    first, all_views = page.evaluate("() => [watch.first / 1000, watch.all / 1000]")
    return float(first), float(all_views)


def _changed(page: Page, kind: str, act: Callable[[], Any]) -> float:
    """From the event of `kind` that `act` makes to the first frame that differs."""
    page.evaluate("(kind) => { watch.after(kind) }", kind)
    act()
    return float(page.evaluate("() => watch.change"))


def _median(values: list[float]) -> float:
    return round(float(statistics.median(values)), 3)


def as_series(ct: Volume) -> list[Dataset]:
    """A CT as a scanner sends it: one image for each slice."""
    template = hospital_series(slices=1)[0]
    matrix = np.diag([-1.0, -1.0, 1.0, 1.0]) @ ct.geometry.matrix  # DICOM's axes: LPS
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    direction = matrix[:3, :3] / spacing
    images = []
    for k in range(ct.voxels.shape[2]):
        one = copy.deepcopy(template)
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        one.Rows, one.Columns = ct.voxels.shape[1], ct.voxels.shape[0]
        one.PixelSpacing = [round(float(spacing[1]), 6), round(float(spacing[0]), 6)]
        one.SliceThickness = round(float(spacing[2]), 6)
        one.InstanceNumber = k + 1
        axes = np.concatenate([direction[:, 0], direction[:, 1]])
        one.ImageOrientationPatient = [round(float(value), 6) for value in axes]
        place = matrix @ (0, 0, k, 1)
        one.ImagePositionPatient = [round(float(value), 4) for value in place[:3]]
        one.PixelData = np.ascontiguousarray(ct.voxels[:, :, k].T.astype("<i2")).tobytes()
        images.append(one)
    return images
