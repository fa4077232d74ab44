"""Real CTs in the page: axial, thick, stored towards the left, from the feet up and from the head.

Sides, millimetres and Hounsfield units are those of the file, and a stroke is found where it was
drawn, whatever the order of the file's axes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from atlas_core.catalog import Catalog
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import Volume, read_volume
from atlas_core.imaging.dicom_reader import find_series, write_series
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.records import Dataset
from atlas_core.review import Portion, RevisionQueue
from atlas_review.auth import Role
from browser import Visit
from numpy.typing import NDArray
from pacs_series import real_series
from review_page import (
    axial_axis,
    draft_of,
    geometry_of,
    label_map,
    look_at,
    open_task,
    pixels,
    step_across,
    task_of,
)
from review_server import PASSWORD, ReviewPlace, RunningReview, running_review, seed_volume

ORGANS = {"liver": (60, 180), "stomach": (20, 60)}
"""Organ → tissue between these HU stands for it: where labels lie matters, not what they are."""


def reference(data: Path, name: str) -> Volume:
    return read_volume(data / "TotalSegmentator" / "tests" / "reference_files" / name)


def thick(data: Path, folder: Path) -> Volume:
    """512×512×41 of 5 mm, head first, LPS."""
    real_series(data, folder)
    (series,) = find_series(folder)
    write_series(series.files, folder / "ct.nii.gz")
    return read_volume(folder / "ct.nii.gz")


def upside_down(ct: Volume) -> Volume:
    """The same patient, the slices stored in the other order."""
    matrix = ct.geometry.matrix.copy()
    matrix[:3, 3] += matrix[:3, 2] * (ct.geometry.shape[2] - 1)
    matrix[:3, 2] *= -1
    turned = np.asfortranarray(ct.voxels[:, :, ::-1])
    return Volume(turned, VolumeGeometry.from_array(ct.geometry.shape, matrix))


def tissue(ct: Volume) -> NDArray[np.uint8]:
    """Labels in the middle of the body, of both organs."""
    labels = np.zeros(ct.geometry.shape, np.uint8, order="F")
    middle = tuple(slice(side // 4, -(side // 4)) for side in ct.geometry.shape)
    for organ, (low, high) in ORGANS.items():
        hu = ct.voxels[middle]
        labels[middle][(hu >= low) & (hu < high)] = ABDOMEN_ATLAS[organ].label
    return labels


NAMES = ("axial", "LPS", "thick", "thick, feet first")


@pytest.fixture(scope="module")
def cases(
    shared_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ReviewPlace, dict[str, str]]:
    """A place with a case of each CT, and which case is which."""
    folder = tmp_path_factory.mktemp("real-cts")
    slabs = thick(shared_data, folder / "series")
    cts = (
        reference(shared_data, "example_ct_sm.nii.gz"),
        reference(shared_data, "aorta_report/test_result/models/ct_cropped.nii.gz"),
        slabs,
        upside_down(slabs),
    )
    place = ReviewPlace(folder / "place")
    place.store.root.mkdir(parents=True)
    place.accounts.add_user("rita", PASSWORD, (Role.READER,))
    with Catalog.open(place.catalog_url) as catalog:
        catalog.add_dataset(Dataset(name="Real", title="Real", licence="CC-BY-4.0"))
        made = [
            seed_volume(catalog, place.store, ct, tissue(ct), number, dataset="Real").id
            for number, ct in enumerate(cts)
        ]
        RevisionQueue(catalog).open_tasks(Portion(share=1.0), "admin")
    return place, dict(zip(NAMES, made, strict=True))


@pytest.fixture(scope="module")
def site(cases: tuple[ReviewPlace, dict[str, str]]) -> Iterator[RunningReview]:
    """A service for this module."""
    with running_review(cases[0]) as running:
        yield running


@pytest.fixture(scope="module")
def tasks(site: RunningReview, cases: tuple[ReviewPlace, dict[str, str]]) -> dict[str, int]:
    """Name of a CT → its task."""
    with site.client("rita") as rita:
        found = {one["case_id"]: one["id"] for one in rita.get("/api/v1/queue").json()["tasks"]}
    return {name: found[case] for name, case in cases[1].items()}


@pytest.mark.parametrize("name", NAMES)
def test_a_real_ct_is_shown_and_drawn_as_it_is_stored(
    visit: Visit, site: RunningReview, tasks: dict[str, int], tmp_path: Path, name: str
) -> None:
    number = tasks[name]
    with site.client("rita") as rita:
        task = task_of(rita, number)
        geometry = geometry_of(task)
        ct = np.asanyarray(nib.load(site.place.store.ct_path(task["case_id"])).dataobj)
        before = label_map(rita, task, tmp_path)
        tab = open_task(visit, "rita", number)
        for view, across, up in (("a", 0, 1), ("c", 0, 2), ("s", 1, 2)):
            tab.press("v", view)
            step = step_across(tab, geometry, ct, 40)
            assert step[across] > 1 and step[up] > 1, "right on the left, top up"
        tab.choose("liver")
        tab.press("a", "b")
        with tab.saving():
            ends = np.array(tab.stroke())
        tab.expect_edited("liver")
        drawn = draft_of(rita, number, tmp_path)
    liver = ABDOMEN_ATLAS["liver"].label
    changed = np.argwhere(drawn != before)
    assert (drawn[tuple(changed.T)] == liver).all()
    low, high = ends.min(axis=0), ends.max(axis=0)
    assert len(set(ends[:, axial_axis(task)])) == 1
    between = tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))
    free = (before[between] == 0) | (before[between] == liver)
    assert (drawn[between][free] == liver).all()
    assert changed.size and (changed >= low).all() and (changed <= high).all()


def test_both_orders_of_slices_are_one_picture(visit: Visit, tasks: dict[str, int]) -> None:
    """To the pixel, at the same place of the patient."""
    pictures, places = [], []
    for name in NAMES[2:]:
        tab = look_at(visit, "rita", tasks[name])
        tab.press("l", "t")
        for view in ("c", "s", "a"):
            tab.press(view)
            tab.page.mouse.click(*tab.middle())
        places.append(tab.place[1].tolist())
        pictures.append(pixels(tab.page))
        visit.context.clear_cookies()
    assert places[0] == places[1]
    assert pictures[0] == pictures[1]
