"""A hospital's way, once around: a study is pulled from Orthanc and scored, a label is corrected in
the review page in Chromium, all of them go back, and OHIF opens them.

python tests/pacs_demo.py [--data FOLDER] [--ohif DIST] [--picture FILE]        (make pacs-demo)

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
from atlas_core.assembly import preferred
from atlas_core.catalog import Catalog
from atlas_core.imaging import read_label
from atlas_core.records import Label, LabelSource
from atlas_core.review import Portion
from atlas_core.store import CaseStore
from atlas_embedded.settings import EmbeddedSettings
from atlas_flows.loop.queue_filling import QueueRequest, open_queue
from atlas_review.auth import ACCOUNTS_FILE, Accounts, Role
from browser import CHROMIUM, FLAGS, PATIENCE_MS, visiting
from numpy.typing import NDArray
from ohif import ohif_beside
from orthanc import PASSWORD, USER, Orthanc, running
from pacs_series import phantom_series, read_all, real_series
from playwright.sync_api import TimeoutError as NotYet
from playwright.sync_api import expect, sync_playwright
from ports import free_port
from pydicom import Dataset
from review_page import case_tab, log_in

SIZE = {"width": 1280, "height": 860}
TRIES = 4
DRAWN_MS = 5_000


def atlasloop(home: Path, *words: str) -> dict[str, Any]:
    """Run a command, shown; its JSON, if it was asked for."""
    sys.stdout.write(f"$ atlasloop {' '.join(words)}\n")
    sys.stdout.flush()
    asked = "--json" in words
    done = subprocess.run(
        [sys.executable, "-m", "atlas_flows.cli", *words],
        env=os.environ | {"ATLASLOOP_HOME": str(home)},
        stdout=subprocess.PIPE if asked else None,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout)) if asked else {}


def demo(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    started = time.monotonic()
    home = folder / "home"
    home.mkdir()
    (home / "config.toml").write_text(
        f'components = ["triton", "attention", "review", "prefect"]\nport_base = {free_port()}\n'
    )
    with ExitStack() as stack:
        server = stack.enter_context(running(folder))
        images = source_images(arguments.data, folder)
        server.put(images, folder / "sent")
        os.environ.update(
            ATLASLOOP_PACS_DICOMWEB_URL=server.dicomweb,
            ATLASLOOP_PACS_DICOMWEB_USER=USER,
            ATLASLOOP_PACS_DICOMWEB_PASSWORD=PASSWORD,
        )
        study = str(images[0].StudyInstanceUID)
        with ExitStack() as up:
            up.callback(atlasloop, home, "down")
            atlasloop(home, "up")
            atlasloop(home, "pacs", "pull", "--study", study, "--dataset", "hospital")
            atlasloop(home, "score")
            corrected = correct(home)
            atlasloop(home, "pacs", "push")
            atlasloop(home, "pacs", "list")
        (found,) = server.objects("SEG", folder / "back")
        equal, voxels = compared(home, found, images)
        organs = list(voxels)
        result = {
            "slices": len(images),
            "corrected": corrected.organ,
            "corrected_voxels": int(np.count_nonzero(corrected.before != corrected.after)),
            "corrected_came_back": by_people(found) == [corrected.organ]
            and holds(found, images, corrected),
            "study_is_its_own": found.StudyInstanceUID == study,
            "segments": organs,
            "voxels": voxels,
            "voxels_equal": equal,
        }
        if arguments.ohif is not None:
            largest = max(organs, key=voxels.__getitem__)
            listed = listed_by_ohif(server, study, organs, largest, arguments)
            result["listed_by_ohif"] = listed
    return result | {"seconds": round(time.monotonic() - started, 1)}


@dataclass(frozen=True)
class Correction:
    """A label that somebody corrected in the review page.

    Attributes:
        organ: its title.
        before, after: its voxels ``[i, j, k]`` before, and as the page says that it stored them.
    """

    organ: str
    before: NDArray[np.bool_]
    after: NDArray[np.bool_]


def correct(home: Path) -> Correction:
    """As an annotator does, in the review page in Chromium: sign in, take the case, draw a stroke
    of the smallest organ through the middle of a slice, and hand it in with the case."""
    settings = EmbeddedSettings(home=home)
    password = secrets.token_urlsafe(12)
    accounts = Accounts(settings.review_home / ACCOUNTS_FILE)
    accounts.add_user("annotator", password, (Role.ANNOTATOR,))
    with Catalog.open(settings.catalog_url) as catalog:
        scheme = catalog.organ_scheme()
        open_queue(catalog, QueueRequest(Portion(share=1.0)))
        (case,) = catalog.cases()
        labels = [label for label in catalog.labels(case.id) if label.voxels]
    smallest = min(labels, key=lambda label: label.voxels)
    title = scheme[smallest.organ].title
    store = CaseStore(home / "store")
    before = read_label(store.path(smallest.path)).voxels == smallest.value
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS))
        expect.set_options(timeout=PATIENCE_MS)
        with visiting(browser, settings.review_url.rstrip("/")) as visit:
            page = visit.tab()
            log_in(page, "annotator", password)
            expect(page.get_by_role("table", name="Tasks").get_by_role("row")).to_have_count(2)
            page.keyboard.press("n")
            tab = case_tab(page)
            tab.choose(title)
            tab.press("a", "b")
            tab.stroke()
            tab.expect_edited(title)
            tab.press("Control+Enter")
            tab.expect_state("revised")
        browser.close()
    with Catalog.open(settings.catalog_url) as catalog:
        (revised,) = catalog.labels(case.id, LabelSource.REVISED)
    assert revised.organ == smallest.organ
    after = read_label(store.path(revised.path)).voxels == revised.value
    sys.stdout.write(f"corrected in the review page: {title}\n")
    return Correction(title, before, after)


def holds(found: Dataset, images: list[Dataset], done: Correction) -> bool:
    """Whether the object's segment is the corrected one, voxel for voxel, and no longer the old
    one."""
    names = [str(segment.SegmentLabel) for segment in found.SegmentSequence]
    frames = by_attributes(found, along_body(images))[..., names.index(done.organ)]
    drawn = frames.transpose(2, 1, 0).astype(np.bool_)
    return np.array_equal(drawn, done.after) and not np.array_equal(drawn, done.before)


def by_people(found: Dataset) -> list[str]:
    """Segments that somebody revised."""
    return [
        str(segment.SegmentLabel)
        for segment in found.SegmentSequence
        if segment.SegmentAlgorithmType == "SEMIAUTOMATIC"
    ]


def source_images(data: Path | None, folder: Path) -> list[Dataset]:
    if data is not None:
        if not (data / "mirp").is_dir():
            sys.exit(f"error: {data} has no folder mirp; without DATA= a study is made up")
        return read_all(real_series(data, folder / "real"))
    return phantom_series()


def compared(
    home: Path, found: Dataset, images: list[Dataset]
) -> tuple[dict[str, bool], dict[str, int]]:
    """Whether the object has the voxels of the labels in force, by two readers; and how many each
    segment has."""
    along = along_body(images)
    readers = {"highdicom": by_highdicom(found, along), "by hand": by_attributes(found, along)}
    names = [str(segment.SegmentLabel) for segment in found.SegmentSequence]
    store = CaseStore(home / "store")
    with Catalog.open(f"sqlite:///{home}/catalog.sqlite") as catalog:
        scheme = catalog.organ_scheme()
        (case,) = catalog.cases()
        labels: dict[str, list[Label]] = {}
        for label in catalog.labels(case.id):
            labels.setdefault(scheme[label.organ].title, []).append(label)
    equal, voxels = dict.fromkeys(readers, bool(names)), {}
    for number, name in enumerate(names):
        label = preferred(labels[name])
        mask = read_label(store.path(label.path)).voxels == label.value
        voxels[name] = int(np.count_nonzero(mask))
        for reader, pixels in readers.items():
            equal[reader] &= bool(np.array_equal(pixels[..., number].transpose(2, 1, 0), mask))
    return equal, voxels


def along_body(images: list[Dataset]) -> list[Dataset]:
    return sorted(images, key=lambda image: float(image.ImagePositionPatient[2]))


def by_highdicom(found: Dataset, along: list[Dataset]) -> NDArray[Any]:
    """Segments ``[slice, row, column, segment]``."""
    pixels: NDArray[Any] = highdicom.seg.Segmentation.from_dataset(
        found
    ).get_pixels_by_source_instance(
        source_sop_instance_uids=[image.SOPInstanceUID for image in along],
        assert_missing_frames_are_empty=True,
    )
    return pixels


def by_attributes(found: Dataset, along: list[Dataset]) -> NDArray[Any]:
    """The same, by where each frame says that it lies."""
    heights = np.array([float(image.ImagePositionPatient[2]) for image in along])
    shape = (len(along), int(found.Rows), int(found.Columns), len(found.SegmentSequence))
    pixels = np.zeros(shape, np.uint8)
    for frame, groups in zip(
        found.pixel_array.reshape(-1, *shape[1:3]),
        found.PerFrameFunctionalGroupsSequence,
        strict=True,
    ):
        height = float(groups.PlanePositionSequence[0].ImagePositionPatient[2])
        number = int(groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        pixels[int(np.abs(heights - height).argmin()), ..., number - 1] = frame
    return pixels


def listed_by_ohif(
    server: Orthanc, study: str, organs: list[str], shown: str, arguments: argparse.Namespace
) -> list[str]:
    """The segments that OHIF lists by name, of those that were sent.

    Args:
        shown: segment that the picture jumps to.
    """
    with ohif_beside(server, arguments.ohif) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS))
        page = browser.new_page(viewport=SIZE)
        page.set_default_timeout(PATIENCE_MS)
        page.goto(f"{address}/segmentation?StudyInstanceUIDs={study}")
        try:
            page.locator("canvas").first.wait_for()
            page.get_by_text("Confirm and hide").click()
            first = page.get_by_text(organs[0], exact=True).first
            for _ in range(TRIES):  # while its viewport is not ready, OHIF forgets the click
                page.get_by_text("SEG", exact=True).first.dblclick()
                try:
                    first.wait_for(timeout=PATIENCE_MS / TRIES)
                    break
                except NotYet:
                    continue
            page.get_by_text(shown, exact=True).first.click()
            page.wait_for_load_state("networkidle")
            page.wait_for_timeout(DRAWN_MS)  # nothing says when WebGL has drawn
        finally:
            if arguments.picture is not None:
                page.screenshot(path=arguments.picture)
        listed = [name for name in organs if page.get_by_text(name, exact=True).count()]
        browser.close()
    return listed


def main() -> int:
    """Exit status: 0 if the labels came back as they are here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of real CTs with mirp/")
    parser.add_argument("--ohif", type=Path, help="package/dist of @ohif/app; none: no viewer")
    parser.add_argument("--picture", type=Path, help="of the viewer, as PNG")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = demo(arguments, Path(folder))
    sys.stdout.write(f"{json.dumps(result)}\n")
    good = result["study_is_its_own"] and result["corrected_came_back"]
    good = good and all(result["voxels_equal"].values())
    shown = result.get("listed_by_ohif", result["segments"]) == result["segments"]
    return 0 if good and shown else 1


if __name__ == "__main__":
    sys.exit(main())
