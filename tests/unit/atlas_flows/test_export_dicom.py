"""A case that came as DICOM goes back as DICOM: its labels on the slices that it came on."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from atlas_core.catalog import Catalog
from atlas_core.dicom import open_labels, read_headers, segmentation
from atlas_core.dicom_export import ExportedLabels, ObjectKind, objects_of_case, write_objects
from atlas_core.errors import Conflict, GridMismatch, NotFound
from atlas_core.imaging.dicom_reader import the_series
from atlas_core.importing import import_folder
from atlas_core.records import Case, LabelSource
from atlas_core.store import CaseStore
from atlas_flows.cli import app
from dicom_iods import problems
from dicom_series import ORIENTATIONS, in_a_study, write_series
from pydicom import Dataset, dcmread
from typer.testing import CliRunner


class Atlas:
    """An atlas with one case, whose liver was drawn on its series."""

    def __init__(self, home: Path, catalog: Catalog) -> None:
        self.catalog, self.store = catalog, CaseStore(home / "store")
        self.folder = home / "in"
        self.folder.mkdir()
        change = in_a_study(ORIENTATIONS["oblique, anisotropic"])
        files = write_series(self.folder / "ct", change)
        self.headers = read_headers(files)
        options = {"catalog": catalog, "store": self.store, "force": True}
        summary = import_folder(self.folder, "site", **options)
        self.case: Case = catalog.case(summary.taken[0].case_id)
        self.liver = np.zeros(self.case.shape, bool)
        self.liver[1:4, 1:3, 0:2] = True
        self.segments().save_as(self.folder / "seg.dcm")
        import_folder(self.folder, "site", **options)

    def segments(self) -> Dataset:
        return segmentation(
            self.headers,
            {"liver": self.liver},
            self.catalog.organ_scheme(),
            geometry=self.case.geometry,
            origin=LabelSource.ORIGINAL,
            created_at=datetime(2026, 1, 1, tzinfo=UTC),
        )


@pytest.fixture
def atlas(tmp_path: Path) -> Iterator[Atlas]:
    with Catalog.open(f"sqlite:///{tmp_path}/catalog.sqlite") as catalog:
        yield Atlas(tmp_path, catalog)


def test_labels_contours_and_volumes_go_out_together(atlas: Atlas, tmp_path: Path) -> None:
    kinds = [ObjectKind.SEG, ObjectKind.RTSTRUCT, ObjectKind.REPORT]
    objects = objects_of_case(
        atlas.catalog,
        atlas.store,
        atlas.case.id,
        atlas.headers,
        kinds=kinds,
        label=ExportedLabels.ORIGINAL,
    )
    assert set(objects) == {"seg", "rtstruct", "report"}
    write_objects(tmp_path / "out", objects)
    for name in objects:
        assert problems(dcmread(tmp_path / "out" / f"{name}.dcm")) == []
    for name in ("seg", "rtstruct"):
        found = open_labels(tmp_path / "out" / f"{name}.dcm")
        (liver,) = found.segments
        assert liver.name == "liver"
        assert np.array_equal(found.mask(liver, atlas.case.geometry), atlas.liver)
    with pytest.raises(Conflict):
        write_objects(tmp_path / "out", objects)


def test_what_is_not_there_is_said(atlas: Atlas) -> None:
    wanted = (atlas.catalog, atlas.store, atlas.case.id, atlas.headers)
    with pytest.raises(NotFound, match="not assembled"):
        objects_of_case(*wanted)
    with pytest.raises(NotFound, match="no revised label"):
        objects_of_case(*wanted, label=ExportedLabels.REVISED)
    with pytest.raises(NotFound, match="not scored"):
        objects_of_case(*wanted, kinds=[ObjectKind.MAP])


def test_another_series_is_refused(atlas: Atlas, tmp_path: Path) -> None:
    other = read_headers(write_series(tmp_path / "other", in_a_study()))
    with pytest.raises(GridMismatch, match="source series"):
        objects_of_case(
            atlas.catalog, atlas.store, atlas.case.id, other, label=ExportedLabels.ORIGINAL
        )


def test_the_command_writes_a_folder(atlas: Atlas, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("ATLASLOOP_CATALOG_URL", f"sqlite:///{tmp_path}/catalog.sqlite")
    monkeypatch.setenv("ATLASLOOP_STORE", str(tmp_path / "store"))
    assert the_series(atlas.folder / "ct").modality == "CT"
    arguments = ["--home", str(tmp_path / "home"), "export-dicom", atlas.case.id]
    arguments += [str(tmp_path / "out"), "--series", str(atlas.folder / "ct")]
    ran = CliRunner().invoke(app, [*arguments, "--label", "original", "--kind", "seg"])
    assert ran.exit_code == 0, ran.output
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["seg.dcm"]


def test_the_command_names_what_there_is() -> None:
    from atlas_flows.commands.dicom import ChoiceName, KindName

    assert [one.value for one in KindName] == [one.value for one in ObjectKind]
    assert [one.value for one in ChoiceName] == [one.value for one in ExportedLabels]
