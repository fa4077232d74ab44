"""The simulated annotator over a real review service: what it hands in, and when it stops."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from atlas_core.catalog import Catalog
from atlas_core.errors import ConfigurationError, Unavailable
from atlas_core.imaging import Volume, content_sha256, read_label, write_volume
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.phantoms import PhantomGrid, make_phantom
from atlas_core.records import Label, LabelSource
from atlas_core.review import LabelVersions, RevisionQueue, TaskCounts, TaskFilter, Verdict
from atlas_flows.demos.simulated_annotator import (
    ACCOUNT,
    MINUTES_PER_ORGAN,
    AnnotatorPolicy,
    PhantomLabels,
    ReviewApi,
    annotate,
)
from atlas_review.auth import Role
from ports import free_port
from review_server import ReviewPlace, make_place, running_review

WRONG = {"liver", "stomach"}
"""Organs that `review_server` predicts too small."""

A_CASE = MINUTES_PER_ORGAN * 9
LONG = AnnotatorPolicy(minutes=600)


@pytest.fixture
def place(tmp_path: Path) -> ReviewPlace:
    return make_place(tmp_path / "review", cases=2)


@pytest.fixture
def api(place: ReviewPlace) -> Iterator[ReviewApi]:
    token = place.accounts.add_token(ACCOUNT, (Role.ANNOTATOR,))
    with running_review(place) as running, ReviewApi.open(running.url, token) as opened:
        yield opened


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> PhantomLabels:
    """Of the two phantoms that `make_place` makes."""
    folder = tmp_path_factory.mktemp("truth")
    maps = {}
    for seed in range(2):
        phantom = make_phantom(seed, grid=PhantomGrid(columns=64, slice_mm=6.0))
        digest = content_sha256(Volume(phantom.ct, phantom.geometry))
        maps[digest] = folder / f"{seed}.nii.gz"
        write_volume(maps[digest], phantom.truth, phantom.geometry)
    return PhantomLabels(maps)


def revised(place: ReviewPlace) -> list[Label]:
    with Catalog.open(place.catalog_url) as catalog:
        cases = [case.id for case in catalog.cases()]
        return [label for case in cases for label in catalog.labels(case, LabelSource.REVISED)]


def counts(place: ReviewPlace) -> TaskCounts:
    with Catalog.open(place.catalog_url) as catalog:
        return RevisionQueue(catalog).counts(TaskFilter())


def test_wrong_labels_become_the_truth_and_nothing_else_changes(
    place: ReviewPlace, api: ReviewApi, truth: PhantomLabels
) -> None:
    done = annotate(api, truth, LONG)
    assert (done.revised, done.confirmed, done.skipped) == (2, 0, 0)
    labels = revised(place)
    assert {label.organ for label in labels} == WRONG
    assert {label.annotator for label in labels} == {ACCOUNT}
    for label in labels:
        true = truth.of_case(label.case_id)
        assert true is not None
        voxels = read_label(place.store.path(label.path)).voxels
        assert np.array_equal(voxels != 0, true == ABDOMEN_ATLAS[label.organ].label)
    assert counts(place) == TaskCounts(revised=2)
    # One case has an original spleen, which nobody looks at
    assert done.minutes == pytest.approx(MINUTES_PER_ORGAN * 17)
    # One member has it right: taking its shape leaves nothing to draw but what no region holds.
    assert done.effort.clicks > 0
    assert done.effort.strokes < done.effort_by_drawing.strokes
    assert done.effort.seconds < done.effort_by_drawing.seconds
    assert annotate(api, truth, LONG).revised == 0


def test_labels_that_are_good_enough_are_confirmed(
    place: ReviewPlace, api: ReviewApi, truth: PhantomLabels
) -> None:
    done = annotate(api, truth, AnnotatorPolicy(minutes=600, dice=0.5))
    assert (done.revised, done.confirmed) == (0, 2)
    assert revised(place) == []


def test_it_takes_no_case_that_exceeds_its_time(
    place: ReviewPlace, api: ReviewApi, truth: PhantomLabels
) -> None:
    done = annotate(api, truth, AnnotatorPolicy(minutes=A_CASE + 1))
    assert done.budget_spent
    assert done.minutes <= A_CASE
    assert counts(place) == TaskCounts(open=1, revised=1)


def test_a_case_without_truth_is_skipped(place: ReviewPlace, api: ReviewApi) -> None:
    assert annotate(api, PhantomLabels({}), LONG).skipped == 2
    assert counts(place) == TaskCounts(skipped=2)


def test_stopped_after_handing_in_it_goes_on(
    place: ReviewPlace, api: ReviewApi, truth: PhantomLabels, tmp_path: Path
) -> None:
    task = api.next(None)
    assert task is not None
    true = truth.of_case(task.case_id)
    assert true is not None
    with Catalog.open(place.catalog_url) as catalog:
        geometry = catalog.case(task.case_id).geometry
        (base,) = (
            version.id
            for version in LabelVersions(catalog).versions(task.case_id, "liver")
            if version.in_force
        )
    mask = np.asfortranarray((true == ABDOMEN_ATLAS["liver"].label).astype(np.uint8))
    write_volume(tmp_path / "liver.nii.gz", mask, geometry)
    api.judge(task, "liver", Verdict.NEEDS_REVISION)
    api.hand_in(task, "liver", base, tmp_path / "liver.nii.gz")
    assert annotate(api, truth, LONG).revised == 2
    assert counts(place) == TaskCounts(revised=2)
    assert len(revised(place)) == 4, "the liver was handed in twice"


def test_a_service_that_is_away_and_a_wrong_token_are_told(
    place: ReviewPlace, api: ReviewApi
) -> None:
    away = f"http://127.0.0.1:{free_port()}"
    with ReviewApi.open(away, "x") as nobody, pytest.raises(Unavailable, match="atlasloop up"):
        annotate(nobody, PhantomLabels({}), LONG)
    url = str(api._client.base_url).removesuffix("/api/v1/")
    with ReviewApi.open(url, "wrong") as stranger, pytest.raises(ConfigurationError):
        annotate(stranger, PhantomLabels({}), LONG)
