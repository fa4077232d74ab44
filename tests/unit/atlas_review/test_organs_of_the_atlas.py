"""The review service works for an atlas with the organs that it is configured for, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest
from atlas_core.catalog import Catalog, extend_organs
from atlas_core.errors import ConfigurationError
from atlas_core.organs import read_scheme
from atlas_review.__main__ import EXIT_CONFIGURATION, main
from atlas_review.service import open_catalog, require_same_organs
from atlas_review.settings import ReviewSettings
from pydantic import SecretStr

MORE = read_scheme("abdomen_atlas_1_1")
BOTH = r"abdomen_atlas_1_0 \(9 organs.*abdomen_atlas_1_1 \(25 organs.*ATLAS_REVIEW_ORGANS"


def settings_of(folder: Path, organs: str) -> ReviewSettings:
    return ReviewSettings.model_validate(
        {
            "catalog_url": SecretStr(f"sqlite:///{folder}/catalog.sqlite"),
            "store": folder / "store",
            "home": folder / "review",
            "organs": organs,
        }
    )


def test_it_does_not_start_for_other_organs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigurationError, match=BOTH):
        open_catalog(settings_of(tmp_path, "abdomen_atlas_1_1"))
    monkeypatch.setenv("ATLAS_REVIEW_CATALOG_URL", f"sqlite:///{tmp_path}/catalog.sqlite")
    monkeypatch.setenv("ATLAS_REVIEW_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("ATLAS_REVIEW_HOME", str(tmp_path / "review"))
    monkeypatch.setenv("ATLAS_REVIEW_ORGANS", "abdomen_atlas_1_1")
    assert main([]) == EXIT_CONFIGURATION
    assert "the atlas and the review service have different organs" in capsys.readouterr().err


def test_it_is_not_ready_once_the_atlas_has_other_organs(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "abdomen_atlas_1_0")
    with (
        open_catalog(settings) as catalog,
        Catalog.open(catalog.engine.url.render_as_string()) as b,
    ):
        require_same_organs(settings, catalog)
        extend_organs(b, MORE)
        with pytest.raises(ConfigurationError, match="abdomen_atlas_1_1"):
            require_same_organs(settings, catalog)
