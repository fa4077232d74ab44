"""Files that a killed review service left are set aside; whatever a row names stays."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from atlas_core.catalog import Catalog
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import Volume
from atlas_core.records import Case, Dataset
from atlas_core.review import (
    NO_BASE,
    Annotator,
    LabelVersions,
    NotHeld,
    Submission,
    set_orphans_aside,
)
from atlas_core.store import CaseStore

GRID = VolumeGeometry.from_array((6, 5, 4), np.diag([-1.0, 2.0, 5.0, 1.0]))
CASE = "lits_0123456789ab"


def a_mask(column: int) -> Volume:
    mask = np.zeros(GRID.shape, np.uint8, order="F")
    mask[column] = 1
    return Volume(mask, GRID)


def test_a_mask_without_a_row_is_set_aside_once_no_upload_can_be_running(tmp_path: Path) -> None:
    store = CaseStore(tmp_path / "store")
    with Catalog.open(f"sqlite:///{tmp_path}/catalog.sqlite") as catalog:
        catalog.add_dataset(Dataset(name="lits"))
        catalog.add_case(
            Case(
                id=CASE,
                dataset="lits",
                content_sha256="a" * 64,
                shape=GRID.shape,
                affine=GRID.affine,
                imported_at=datetime(2026, 3, 2, tzinfo=UTC),
            )
        )
        kept = store.write_submission(CASE, "liver", a_mask(1))
        with pytest.raises(NotHeld):  # a proposal has a row, too
            LabelVersions(catalog).submit(
                Submission(
                    case_id=CASE,
                    organ="liver",
                    path=kept.path,
                    sha256=kept.sha256,
                    voxels=20,
                    volume_ml=0.2,
                    author=Annotator("bob"),
                    base=NO_BASE,
                )
            )
        stranger = store.write_submission("msd_ba9876543210", "liver", a_mask(2)).path
        mask = store.write_submission(CASE, "liver", a_mask(3)).path
        draft = store.write_draft(CASE, a_mask(4)).path
        fresh = store.write_submission(CASE, "liver", a_mask(5)).path
        for path in (stranger, mask, draft, kept.path):
            os.utime(store.path(path), (0, 0))
        content = store.path(mask).read_bytes()
        assert sorted(set_orphans_aside(store, catalog)) == sorted([mask, draft])
        assert store.path(f"orphans/{mask}").read_bytes() == content
        assert not store.path(mask).exists()
        assert store.path(kept.path).exists()
        assert store.path(stranger).exists(), "the catalog knows nothing of this case"
        assert store.path(fresh).exists(), "its row may be on its way"
        assert set_orphans_aside(store, catalog) == []
