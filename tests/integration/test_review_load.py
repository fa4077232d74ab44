"""32 annotators at once on PostgreSQL, over HTTP, with two processes of the service."""

from __future__ import annotations

import hashlib
from pathlib import Path

from atlas_core.catalog import Catalog
from atlas_core.review import LabelVersions, RevisionQueue, TaskFilter
from atlas_review.auth import Role
from ports import free_port
from review_load import ORGAN, a_mask, fill_catalog, hammer
from review_server import ReviewPlace, running_review

CASES = 320
CLIENTS = 32


def test_no_case_is_leased_twice_and_no_label_is_lost(tmp_path: Path, postgresql_url: str) -> None:
    place = ReviewPlace(tmp_path)
    place.store.root.mkdir()
    with Catalog.open(postgresql_url) as catalog:
        fill_catalog(catalog, CASES)
    tokens = [place.accounts.add_token(f"c{n}", (Role.ANNOTATOR,)) for n in range(CLIENTS)]
    port = free_port()
    with running_review(place, port=port, catalog_url=postgresql_url, workers=2):
        works = hammer(port, tokens, a_mask(tmp_path))
    assert [error for work in works for error in work.errors] == []
    assert sorted(task for work in works for task in work.tasks) == list(range(1, CASES + 1))
    labels = [label for work in works for label in work.labels]
    with Catalog.open(postgresql_url) as catalog:
        counts = RevisionQueue(catalog).counts(TaskFilter())
        versions = LabelVersions(catalog)
        for case_id, version_id in labels:
            version = versions.in_force(case_id)[ORGAN]
            content = place.store.path(version.path).read_bytes()
            assert version.id == version_id
            assert hashlib.sha256(content).hexdigest() == version.sha256
    assert (counts.revised, counts.confirmed) == (len(labels), CASES - len(labels))
    assert not list((place.store.root / ".incoming").iterdir())
