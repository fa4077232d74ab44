"""The review page in Chromium without a graphics card: how long a radiologist waits for it.

One CT of 512 × 512 × 300 with labels and attention, served by the review service on this machine.
By default a phantom; `--ct` and `--labels` take a real one, which is resampled to that size. Times
are taken in the page, up to the frame that shows what was asked for; each is a median of several.
With `--ohif` the stock viewer opens the same CT beside Orthanc afterwards, in the same browser, and
`ahead_of_ohif` says where the page is quicker.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from atlas_core.catalog import Catalog
from atlas_core.geometry import Shape3, VolumeGeometry
from atlas_core.imaging import Volume, read_label, read_stored
from atlas_core.organs import ABDOMEN_ATLAS, read_scheme
from atlas_core.phantoms import PhantomGrid, make_phantom
from atlas_core.records import Dataset
from atlas_core.review import Portion, RevisionQueue
from bench.canvas_digest import DIGEST_OF
from bench.measurement import GIB, machine, report, say
from numpy.typing import NDArray
from scipy import ndimage

# The server of the tests is the server of the benchmarks, and so is their browser.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from browser import CHROMIUM, FLAGS, PATIENCE_MS
from peers import ohif_views
from playwright.sync_api import Browser, Page, Playwright, sync_playwright
from review_server import PASSWORD, PEOPLE, ReviewPlace, running_review, seed_volume

SHAPE: Final = (512, 512, 300)
PHANTOM_COLUMNS: Final = 128
RUNS: Final = 7
STROKE_S: Final = 3.0

WATCH: Final = """
() => {
  DIGEST_OF
  const watch = { first: null, frames: 0, last: 0 }
  watch.digest = () => digestOf(document.querySelector('canvas'))
  const frame = () => {
    const now = watch.digest()
    if (now && watch.first === null) watch.first = performance.now()
    if (now !== watch.last) watch.frames += 1
    watch.last = now
    if (watch.on !== false) requestAnimationFrame(frame)
  }
  requestAnimationFrame(frame)
  watch.after = (act) => new Promise((done) => {
    const before = watch.digest()
    const began = performance.now()
    act()
    const look = () => {
      if (watch.digest() !== before) done((performance.now() - began) / 1000)
      else requestAnimationFrame(look)
    }
    requestAnimationFrame(look)
  })
  window.watch = watch
}
""".replace("DIGEST_OF", DIGEST_OF)
PRESS: Final = """
(key) => watch.after(() => {
  const target = document.querySelector('canvas')
  for (const kind of ['keydown', 'keyup']) {
    target.dispatchEvent(new KeyboardEvent(kind, { key, bubbles: true, cancelable: true }))
  }
})
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ct", type=Path, help="a real CT, NIfTI; resampled")
    parser.add_argument("--labels", type=Path, help="its labels, NIfTI")
    parser.add_argument("--scheme", default="totalsegmentator_v2", help="numbers of the labels")
    parser.add_argument("--shape", type=int, nargs=3, default=SHAPE, help="voxels, for a try")
    parser.add_argument("--ohif", type=Path, help="package/dist of @ohif/app, to compare with")
    wanted = parser.parse_args()
    i, j, k = wanted.shape
    described = machine("fastapi", "playwright")
    with tempfile.TemporaryDirectory() as name:
        place = ReviewPlace(Path(name))
        say("making the case")
        if wanted.ct and wanted.labels:
            ct, truth = _real(wanted.ct, wanted.labels, wanted.scheme, (i, j, k))
        else:
            ct, truth = _phantom((i, j, k))
        make(place, ct, truth)
        with running_review(place) as running:
            result = measured(running.url)
    if wanted.ohif:
        result |= _beside_ohif(result, ct, wanted.ohif)
    report(
        "review-page",
        **result,
        inputs={"shape": [i, j, k], "ct": "real" if wanted.ct else "phantom", "runs": RUNS},
        machine=described,
    )


def _beside_ohif(ours: dict[str, Any], ct: Volume, dist: Path) -> dict[str, Any]:
    say("OHIF")
    with sync_playwright() as playwright:
        browser, before = _browser(playwright)
        theirs = ohif_views.measured(
            ct,
            dist,
            lambda script: _page(browser, script),
            lambda: _memory_gb(before),
            RUNS,
        )
        browser.close()
    return {"ohif": theirs, "ahead_of_ohif": {name: ours[name] < theirs[name] for name in theirs}}


def _phantom(shape: Shape3) -> tuple[Volume, NDArray[np.uint8]]:
    phantom = make_phantom(0, grid=PhantomGrid(columns=PHANTOM_COLUMNS))
    return _resampled(phantom.ct, phantom.truth, phantom.geometry, shape)


def _real(ct: Path, labels: Path, scheme: str, shape: Shape3) -> tuple[Volume, NDArray[np.uint8]]:
    volume, stored = read_stored(ct), read_label(labels)
    numbers = np.zeros(256, np.uint8)
    for organ in read_scheme(scheme):
        if organ.name in ABDOMEN_ATLAS:
            numbers[organ.label] = ABDOMEN_ATLAS[organ.name].label
    return _resampled(volume.voxels, numbers[stored.voxels], volume.geometry, shape)


def _resampled(
    ct: NDArray[Any], labels: NDArray[np.uint8], geometry: VolumeGeometry, shape: Shape3
) -> tuple[Volume, NDArray[np.uint8]]:
    """Both of `shape`, over the same part of the patient."""
    factors = np.divide(shape, geometry.shape)
    matrix = geometry.matrix.copy()
    matrix[:3, :3] /= factors
    hu = ndimage.zoom(ct.astype(np.float32), factors, order=1, grid_mode=True, mode="nearest")
    hu = np.asfortranarray(np.clip(np.round(hu), -1024, 3071).astype(np.int16))
    truth = ndimage.zoom(labels, factors, order=0, grid_mode=True, mode="nearest")
    return Volume(hu, VolumeGeometry.from_array(shape, matrix)), np.asfortranarray(truth)


def make(place: ReviewPlace, ct: Volume, truth: NDArray[np.uint8]) -> None:
    """A place with one case, open in the queue."""
    place.store.root.mkdir(parents=True)
    for name, role in PEOPLE.items():
        place.accounts.add_user(name, PASSWORD, (role,))
    with Catalog.open(place.catalog_url) as catalog:
        catalog.add_dataset(Dataset(name="Phantoms", title="Phantoms", licence="CC0-1.0"))
        seed_volume(catalog, place.store, ct, truth, 0)
        RevisionQueue(catalog).open_tasks(Portion(share=1.0), "admin")


def measured(url: str) -> dict[str, Any]:
    """Every figure of the page at `url`, in a browser of its own."""
    say("the page")
    with sync_playwright() as playwright:
        browser, before = _browser(playwright)
        page = _page(browser, f"({WATCH})()")
        page.goto(f"{url}/")
        page.get_by_label("User name").fill("ann")
        page.get_by_label("Password").fill(PASSWORD)
        page.keyboard.press("Enter")
        page.get_by_role("table", name="Tasks").wait_for()
        opened = [_opened(page, url) for _ in range(3)]
        say("its views")
        window = [_pressed(page, key) for key in "23" * RUNS][:RUNS]
        slices = [_pressed(page, "ArrowUp") for _ in range(RUNS)]
        toggle = [_pressed(page, "l") for _ in range(RUNS)]
        carried = _median(_carried_s(page) for _ in range(3))
        fps = _stroke_fps(page)
        memory = _memory_gb(before)
        browser.close()
    first = _median(first for first, _ in opened)
    return {
        "first_picture_s": first,
        "bytes_s": carried,
        "first_picture_by_bytes": round(first / carried, 1),
        "all_views_s": _median(whole for _, whole in opened),
        "window_s": _median(window),
        "slice_s": _median(slices),
        "stroke_fps": round(fps, 1),
        "toggle_s": _median(toggle),
        "memory_gb": round(memory, 2),
    }


def _browser(playwright: Playwright) -> tuple[Browser, set[int]]:
    """A new browser, and its processes at the start."""
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
    return browser, _children_of(browser_pid())


def _page(browser: Browser, script: str) -> Page:
    """A page in which `script` runs before each document."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.add_init_script(script)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    return page


def _memory_gb(before: set[int]) -> float:
    return sum(_resident(pid) for pid in _children_of(browser_pid()) | before) / GIB


def _median(values: Any) -> float:
    return round(float(statistics.median(values)), 3)


def _opened(page: Page, url: str) -> tuple[float, float]:
    """Seconds from the start of the page to its first picture, and until everything is there."""
    page.goto("about:blank")
    page.goto(f"{url}/#/task/1")
    page.wait_for_function(
        "() => /^voxel/.test(document.querySelector('.where')?.textContent ?? '')", polling="raf"
    )
    first, whole = page.evaluate("() => [watch.first / 1000, performance.now() / 1000]")
    return float(first), float(whole)


def _carried_s(page: Page) -> float:
    """Seconds until the bytes of the CT are there, and nothing is made of them."""
    return float(
        page.evaluate("""async () => {
          const task = await (await fetch('/api/v1/tasks/1')).json()
          const began = performance.now()
          await (await fetch(task.case.ct.url, { cache: 'reload' })).arrayBuffer()
          return (performance.now() - began) / 1000
        }""")
    )


def _pressed(page: Page, key: str) -> float:
    return float(page.evaluate(PRESS, key))


def _stroke_fps(page: Page) -> float:
    """Pictures that differ, a second, while the pen is moved without pause."""
    page.get_by_role("button", name=re.compile("^Work ")).click()
    page.get_by_role("button", name="Confirm case").wait_for()
    page.keyboard.press("b")
    box = page.locator("canvas").bounding_box()
    assert box
    x, y = box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.5
    page.mouse.move(x, y)
    page.mouse.down()
    began, frames, step = time.perf_counter(), page.evaluate("() => watch.frames"), 0
    while time.perf_counter() - began < STROKE_S:
        step += 1
        page.mouse.move(x + 90 * np.sin(step / 9), y + 90 * np.cos(step / 7))
    drawn = page.evaluate("() => watch.frames") - frames
    elapsed = time.perf_counter() - began
    page.mouse.up()
    return float(drawn) / elapsed


def browser_pid() -> int:
    """This process: the browser and its processes descend from it."""
    return int(Path("/proc/self").resolve().name)


def _children_of(root: int) -> set[int]:
    """Renderer and GPU processes that descend from `root`."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue  # it has ended
            parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
    return {pid for pid in parents if _descends(pid, root, parents) and _draws(pid)}


def _descends(pid: int, root: int, parents: dict[int, int]) -> bool:
    while pid in parents:
        if pid == root:
            return True
        pid = parents[pid]
    return False


def _draws(pid: int) -> bool:
    command = Path(f"/proc/{pid}/cmdline").read_bytes()
    return b"--type=renderer" in command or b"--type=gpu-process" in command


def _resident(pid: int) -> int:
    """Bytes of a process in memory, shared pages in parts; 0 where it has ended."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return 0
    line = next(line for line in rollup.splitlines() if line.startswith("Pss:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
