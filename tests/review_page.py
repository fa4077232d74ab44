"""A case in the review page, as its user sees and touches it; and what the service has stored."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import read_label, write_volume
from browser import Visit
from numpy.typing import NDArray
from playwright.sync_api import Page, expect
from review_server import PASSWORD

STROKE_PX = 40
BEGIN = re.compile("^Work (on this case|here instead)")


@dataclass
class CaseTab:
    """A tab with a case, as its user sees and touches it."""

    page: Page

    @property
    def crosshair(self) -> tuple[int, int, int]:
        """Voxel of the CT in the file's own order, as the page shows it."""
        text = self.page.get_by_label("Crosshair").inner_text()
        found = re.match(r"voxel (-?\d+) (-?\d+) (-?\d+) ", text)
        assert found, text
        i, j, k = (int(number) for number in found.groups())
        return i, j, k

    @property
    def place(self) -> tuple[tuple[int, ...], NDArray[np.float64], int]:
        """Voxel, millimetres and Hounsfield units at the crosshair, as the page says."""
        text = self.page.get_by_label("Crosshair").inner_text()
        found = re.match(r"voxel (\S+) (\S+) (\S+) · (\S+) (\S+) (\S+) mm · (-?\d+) HU", text)
        assert found, text
        numbers = found.groups()
        mm = np.array([float(one) for one in numbers[3:6]])
        return tuple(int(one) for one in numbers[:3]), mm, int(numbers[6])

    @property
    def state(self) -> str:
        return self.page.get_by_role("status", name="State").inner_text()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def choose(self, organ: str) -> None:
        self.page.get_by_role("button", name=f"Draw {organ}").click()

    def middle(self) -> tuple[float, float]:
        box = self.page.locator("canvas").bounding_box()
        assert box
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def stroke(self, below_px: int = 0) -> list[tuple[int, int, int]]:
        """Draw from left to right through the middle; returns the voxels of both ends."""
        x, y = self.middle()
        ends = []
        self.page.mouse.move(x - STROKE_PX, y + below_px)
        self.page.mouse.down()
        ends.append(self.crosshair)
        self.page.mouse.move(x + STROKE_PX, y + below_px, steps=5)
        ends.append(self.crosshair)
        self.page.mouse.up()
        return ends

    def outline(self, half_px: int = STROKE_PX) -> tuple[int, int, int]:
        """Draw a square around the middle, not quite closed; returns the voxel in its middle."""
        x, y = self.middle()
        corners = []
        self.page.mouse.move(x - half_px, y - half_px)
        self.page.mouse.down()
        corners.append(self.crosshair)
        for right, down in ((1, -1), (1, 1), (-1, 1), (-1, -0.9)):
            self.page.mouse.move(x + right * half_px, y + down * half_px, steps=6)
            corners.append(self.crosshair)
        self.page.mouse.up()
        i, j, k = np.mean([corners[0], corners[2]], axis=0).round().astype(int).tolist()
        return i, j, k

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Wait until the server has a draft with the edits of the block; an edit shows at once that
        it is not saved yet."""
        yield
        self.expect_draft("Draft saved")

    def expect_edited(self, *organs: str) -> None:
        marks = self.page.get_by_role("list", name="Organs").get_by_text("edited")
        expect(marks).to_have_count(len(organs))
        for organ in organs:
            row = self.page.get_by_role("listitem").filter(
                has=self.page.get_by_role("button", name=f"Draw {organ}")
            )
            expect(row.get_by_text("edited")).to_be_visible()

    def expect_state(self, state: str) -> None:
        expect(self.page.get_by_role("status", name="State")).to_have_text(state)

    def expect_draft(self, text: str) -> None:
        expect(self.page.get_by_label("Draft", exact=True)).to_have_text(text)


def log_in(page: Page, user: str, password: str = PASSWORD) -> None:
    page.get_by_label("User name").fill(user)
    page.get_by_label("Password").fill(password)
    page.keyboard.press("Enter")


def case_tab(page: Page) -> CaseTab:
    """`page`, once its case is loaded."""
    expect(page.get_by_label("Crosshair")).to_have_text(re.compile("^voxel"))
    expect(page.get_by_role("status", name="State")).to_be_visible()
    return CaseTab(page)


def look_at(visit: Visit, user: str, task: int) -> CaseTab:
    """The case is looked at, and worked on only if it is this user's in this window already."""
    page = visit.tab(f"/#/task/{task}")
    log_in(page, user)
    return case_tab(page)


def begin(tab: CaseTab) -> CaseTab:
    """Work on a case that is only looked at, also if another window works on it."""
    work = tab.page.get_by_role("button", name=BEGIN)
    if work.count():
        work.click()
        expect(work).to_have_count(0)
    return tab


def open_task(visit: Visit, user: str, task: int) -> CaseTab:
    """The case is worked on, where this user may."""
    return begin(look_at(visit, user, task))


def task_of(client: httpx.Client, task: int) -> dict[str, Any]:
    return dict(client.get(f"/api/v1/tasks/{task}").raise_for_status().json())


def in_force(task: dict[str, Any], organ: str) -> dict[str, Any]:
    return next(one for one in task["case"]["labels"] if one["organ"] == organ)


def label_map(client: httpx.Client, task: dict[str, Any], folder: Path) -> NDArray[np.uint8]:
    """All labels in force of the case of a task."""
    return fetched(client, task["case"]["label_map"]["url"], folder).voxels


def fetched(client: httpx.Client, url: str, folder: Path) -> Any:
    path = folder / "fetched.nii.gz"
    path.write_bytes(client.get(url).raise_for_status().content)
    return read_label(path)


def geometry_of(task: dict[str, Any]) -> VolumeGeometry:
    return VolumeGeometry.from_array(task["case"]["shape"], np.array(task["case"]["affine"]))


def draft_of(client: httpx.Client, task: int, folder: Path) -> NDArray[np.uint8]:
    """The label map as `client` has drawn it."""
    drawn: NDArray[np.uint8] = fetched(client, f"/api/v1/tasks/{task}/draft", folder).voxels
    return drawn


def step_across(
    tab: CaseTab, geometry: VolumeGeometry, ct: NDArray[Any], reach: int
) -> NDArray[np.float64]:
    """Click `reach` pixels up and left of the picture's middle, then down and right of it: from the
    second place to the first, RAS+ mm. Both show the place and the attenuation that are stored."""
    x, y = tab.middle()
    places = []
    for right, down in ((-reach, -reach), (reach, reach)):
        tab.page.mouse.click(x + right, y + down)
        voxel, mm, hu = tab.place
        assert np.allclose(geometry.matrix @ [*voxel, 1], [*mm, 1], atol=0.06)
        assert hu == round(float(ct[voxel]))
        places.append(mm)
    return np.asarray(places[0] - places[1])


def axial_axis(task: dict[str, Any]) -> int:
    """Axis of the file along which the axial slices follow each other."""
    matrix = geometry_of(task).matrix[:3, :3]
    return int(np.argmax(np.abs(matrix[2]) / np.linalg.norm(matrix, axis=0)))


def hand_in(client: httpx.Client, task: dict[str, Any], organ: str, folder: Path) -> httpx.Response:
    """A label that another program made: one voxel in the first corner."""
    mask = mask_file(geometry_of(task), folder)
    base = in_force(task, organ)["id"]
    url = f"/api/v1/cases/{task['case_id']}/labels?organ={organ}&base={base}"
    return client.post(url, files={"label": ("mask.nii.gz", mask.read_bytes())})


def mask_file(geometry: VolumeGeometry, folder: Path, name: str = "mask") -> Path:
    voxels = np.zeros(geometry.shape, np.uint8, order="F")
    voxels[0, 0, 0] = 1
    path = folder / f"{name}.nii.gz"
    write_volume(path, voxels, geometry)
    return path


PIXELS = "document.querySelector('canvas').toDataURL()"


def pixels(page: Page) -> str:
    """The canvas once nothing changes it any more, as text that can be compared."""
    return str(
        page.evaluate(f"""async () => {{
      const frame = () => new Promise(requestAnimationFrame)
      for (let last, same = 0; ; ) {{
        await frame()
        const now = {PIXELS}
        same = now === last ? same + 1 : 0
        if (same === 3) return now
        last = now
      }}
    }}""")
    )
