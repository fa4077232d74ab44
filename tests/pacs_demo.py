"""A hospital's way, once around: a study is pulled from Orthanc and scored, its labels go back, and
OHIF opens them.

python tests/pacs_demo.py [--data FOLDER] [--ohif DIST] [--picture FILE]        (make pacs-demo)

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
from atlas_core.catalog import Catalog
from atlas_core.imaging import read_label
from atlas_core.store import CaseStore
from browser import CHROMIUM, FLAGS, PATIENCE_MS
from ohif import ohif_beside
from orthanc import PASSWORD, USER, Orthanc, running
from pacs_series import hospital_series, read_all, real_series
from playwright.sync_api import expect, sync_playwright
from ports import free_port
from pydicom import Dataset

SLICES = 40
"""Of the synthetic series, where there is no real one."""

SIZE = {"width": 1280, "height": 860}


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
        f'components = ["triton", "attention", "prefect"]\nport_base = {free_port()}\n'
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
        atlasloop(home, "up")
        stack.callback(atlasloop, home, "down")
        study = str(images[0].StudyInstanceUID)
        atlasloop(home, "pacs", "pull", "--study", study, "--dataset", "hospital")
        atlasloop(home, "score")
        atlasloop(home, "pacs", "push")
        atlasloop(home, "pacs", "list")
        (found,) = server.objects("SEG", folder / "back")
        equal, organs = compared(home, found, images)
        result = {
            "slices": len(images),
            "study_is_its_own": found.StudyInstanceUID == study,
            "segments": organs,
            "voxels_equal": equal,
        }
        if arguments.ohif is not None:
            result["listed_by_ohif"] = listed_by_ohif(server, study, organs, arguments)
    return result | {"seconds": round(time.monotonic() - started, 1)}


def source_images(data: Path | None, folder: Path) -> list[Dataset]:
    if data is not None and (data / "mirp").is_dir():
        return read_all(real_series(data, folder / "real"))
    return hospital_series(SLICES)


def compared(home: Path, found: Dataset, images: list[Dataset]) -> tuple[bool, list[str]]:
    """Whether the object, read by highdicom, has the voxels of the labels in force; its organs."""
    seg = highdicom.seg.Segmentation.from_dataset(found)
    names = [str(segment.SegmentLabel) for segment in seg.SegmentSequence]
    along = sorted(images, key=lambda image: float(image.ImagePositionPatient[2]))
    pixels = seg.get_pixels_by_source_instance(
        source_sop_instance_uids=[image.SOPInstanceUID for image in along],
        assert_missing_frames_are_empty=True,
    )
    store = CaseStore(home / "store")
    with Catalog.open(f"sqlite:///{home}/catalog.sqlite") as catalog:
        scheme = catalog.organ_scheme()
        (case,) = catalog.cases()
        labels = {scheme[label.organ].title: label for label in catalog.labels(case.id)}
    equal = bool(names)
    for number, name in enumerate(names):
        label = labels[name]
        mask = read_label(store.path(label.path)).voxels == label.value
        equal &= bool(np.array_equal(pixels[..., number].transpose(2, 1, 0), mask))
    return equal, names


def listed_by_ohif(
    server: Orthanc, study: str, organs: list[str], arguments: argparse.Namespace
) -> list[str]:
    """The segments that OHIF lists by name, of those that were sent."""
    with ohif_beside(server, arguments.ohif) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS))
        page = browser.new_page(viewport=SIZE)
        page.set_default_timeout(PATIENCE_MS)
        page.goto(f"{address}/segmentation?StudyInstanceUIDs={study}")
        try:
            expect(page.locator("canvas").first).to_be_visible()
            page.get_by_text("SEG", exact=True).first.dblclick()
            expect(page.get_by_text(organs[0], exact=True).first).to_be_visible()
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
    good = result["voxels_equal"] and result["study_is_its_own"]
    shown = result.get("listed_by_ohif", result["segments"]) == result["segments"]
    return 0 if good and shown else 1


if __name__ == "__main__":
    sys.exit(main())
