"""A submitted mask: its file, then its row, and never one without the other."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from atlas_core.catalog import Catalog
from atlas_core.errors import InvalidInput, LimitExceeded
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import Volume, read_label
from atlas_core.records import Case, Dataset
from atlas_core.review import NO_BASE, Annotator, LabelVersions, StaleBase, Submission
from atlas_core.store import CaseStore
from atlas_review.submissions import MaskSubmission, submit_mask

GRID = VolumeGeometry.from_array((6, 5, 4), np.diag([-1.0, 2.0, 5.0, 1.0]))
CASE = Case(
    id="lits_0123456789ab",
    dataset="lits",
    content_sha256="a" * 64,
    shape=GRID.shape,
    affine=GRID.affine,
    imported_at=datetime(2026, 3, 2, tzinfo=UTC),
)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(f"sqlite:///{tmp_path}/catalog.sqlite") as opened:
        opened.add_dataset(Dataset(name="lits"))
        opened.add_case(CASE)
        yield opened


@pytest.fixture
def versions(catalog: Catalog) -> LabelVersions:
    return LabelVersions(catalog)


@pytest.fixture
def store(tmp_path: Path) -> CaseStore:
    return CaseStore(tmp_path / "store")


def a_submission(author: str = "ann", base: str = NO_BASE, column: int = 1) -> MaskSubmission:
    """Two voxels of the liver in one column."""
    mask = np.zeros(GRID.shape, np.uint8, order="F")
    mask[column, 2, 1:3] = 1
    return MaskSubmission(CASE, "liver", Volume(mask, GRID), Annotator(author, True), base)


def files(store: CaseStore) -> list[str]:
    return [store.relative(path) for path in store.root.rglob("*.nii.gz")]


def test_the_row_describes_the_file(store: CaseStore, versions: LabelVersions) -> None:
    submission = a_submission()
    version = submit_mask(store, versions, submission)
    assert files(store) == [version.path]
    stored = read_label(store.path(version.path))
    assert np.array_equal(stored.voxels, submission.mask.voxels)
    assert version.voxels == 2
    assert version.volume_ml == pytest.approx(0.02)
    assert (version.author, version.base, version.in_force) == ("ann", None, True)


def test_the_same_mask_again_is_one_version_with_one_file(
    store: CaseStore, versions: LabelVersions
) -> None:
    first = submit_mask(store, versions, a_submission())
    assert submit_mask(store, versions, a_submission()) == first
    assert files(store) == [first.path]


def test_a_mask_with_a_stale_base_is_kept(store: CaseStore, versions: LabelVersions) -> None:
    first = submit_mask(store, versions, a_submission())
    with pytest.raises(StaleBase) as caught:
        submit_mask(store, versions, a_submission("bob", column=3))
    kept = caught.value.submitted
    assert caught.value.current == first
    assert sorted(files(store)) == sorted([first.path, kept.path])
    assert [version.id for version in versions.versions(CASE.id)] == [first.id, kept.id]


def test_proposals_of_one_author_are_limited(store: CaseStore, catalog: Catalog) -> None:
    """Nobody fills the store with what nobody asked for; what is handed in as asked still is."""
    versions = LabelVersions(catalog, max_proposals=2)
    first = submit_mask(store, versions, a_submission())
    for column in (2, 3):
        with pytest.raises(StaleBase):
            submit_mask(store, versions, a_submission("bob", column=column))
    kept = files(store)
    with pytest.raises(LimitExceeded, match="bob"):
        submit_mask(store, versions, a_submission("bob", column=4))
    assert files(store) == kept
    with pytest.raises(StaleBase):  # another author, and a repetition
        submit_mask(store, versions, a_submission("eve", column=4))
    with pytest.raises(StaleBase):
        submit_mask(store, versions, a_submission("bob", column=3))
    submitted = submit_mask(store, versions, a_submission("bob", base=first.id, column=5))
    assert submitted.in_force
    waiting = versions.proposals(0, 9)[1]
    versions.accept(CASE.id, waiting[-1].id, Annotator("ann", True), submitted.id)
    with pytest.raises(StaleBase):
        submit_mask(store, versions, a_submission("bob", column=4))


def test_a_refused_mask_leaves_no_file(store: CaseStore, versions: LabelVersions) -> None:
    with pytest.raises(InvalidInput, match="base"):
        submit_mask(store, versions, a_submission(base="7"))
    assert files(store) == []
    assert versions.versions(CASE.id) == []


def test_an_interrupted_submission_leaves_no_file(store: CaseStore, catalog: Catalog) -> None:
    class Interrupted(LabelVersions):
        def submit(self, submission: Submission) -> None:  # type: ignore[override]
            assert files(store) == [submission.path], "the file comes first"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        submit_mask(store, Interrupted(catalog), a_submission())
    assert files(store) == []


def test_a_mask_made_from_the_version_in_force_replaces_it(
    store: CaseStore, versions: LabelVersions
) -> None:
    first = submit_mask(store, versions, a_submission())
    second = submit_mask(store, versions, a_submission("bob", first.id, column=3))
    assert (second.base, second.in_force) == (first.id, True)
    assert sorted(files(store)) == sorted([first.path, second.path]), "versions never disappear"
