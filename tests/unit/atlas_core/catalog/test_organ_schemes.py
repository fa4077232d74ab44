"""The catalog remembers which organs its atlas has."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from atlas_core.catalog import Catalog, choose_organs, extend_organs
from atlas_core.catalog import tables as t
from atlas_core.catalog.database import make_engine
from atlas_core.errors import Conflict
from atlas_core.organs import ABDOMEN_ATLAS, OrganScheme, read_scheme
from atlas_core.records import Case, Dataset

MORE = read_scheme("abdomen_atlas_1_1")
CASE = Case(
    id="c",
    dataset="d",
    content_sha256="0" * 64,
    shape=(2, 2, 2),
    affine=((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)),
    imported_at=datetime.now(UTC),
)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(f"sqlite:///{tmp_path}/catalog.sqlite") as opened:
        yield opened


def fill(catalog: Catalog) -> None:
    catalog.add_dataset(Dataset(name="d"))
    catalog.add_case(CASE)


def test_an_empty_atlas_chooses_its_organs_and_one_with_cases_keeps_them(catalog: Catalog) -> None:
    assert catalog.organ_scheme() == ABDOMEN_ATLAS
    choose_organs(catalog, MORE)
    assert catalog.organ_scheme() == MORE
    fill(catalog)
    choose_organs(catalog, MORE)
    with pytest.raises(Conflict, match=r"abdomen_atlas_1_1 \(25.*abdomen_atlas_1_0 \(9"):
        choose_organs(catalog, ABDOMEN_ATLAS)
    assert catalog.organ_scheme() == MORE


def test_colours_and_aliases_may_change_at_any_time(catalog: Catalog) -> None:
    fill(catalog)
    organs = [organ.model_copy(update={"colour": "#123456"}) for organ in ABDOMEN_ATLAS]
    pale = OrganScheme(name="pale", organs=tuple(organs))
    choose_organs(catalog, pale)
    assert catalog.organ_scheme() == pale


def test_organs_are_added_and_never_changed(catalog: Catalog) -> None:
    fill(catalog)
    assert extend_organs(catalog, MORE) == MORE.names[9:]
    assert extend_organs(catalog, MORE) == ()
    with pytest.raises(Conflict, match="adrenal_gland_left with id 10"):
        extend_organs(catalog, ABDOMEN_ATLAS)
    assert catalog.organ_scheme() == MORE


def test_an_atlas_from_before_has_the_nine(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/old.sqlite"
    engine = make_engine(url)
    config = Config()
    config.set_main_option("script_location", "core/atlas_core/catalog/migrations")
    with engine.execution_options(atlas_write=True).connect() as connection, connection.begin():
        config.attributes["connection"] = connection
        command.upgrade(config, "0008")
        row = {"name": "d", "title": "", "licence": "", "url": "", "organs": []}
        connection.execute(sa.insert(t.datasets), [row])
    engine.dispose()
    with Catalog.open(url) as catalog:
        assert catalog.organ_scheme() == ABDOMEN_ATLAS
        assert [dataset.name for dataset in catalog.datasets()] == ["d"]
