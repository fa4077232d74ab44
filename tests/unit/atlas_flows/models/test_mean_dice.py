"""Mean Dice is one number, whichever command shows it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from atlas_core.catalog import (
    CaseAgreement,
    Catalog,
    Evaluation,
    OrganAgreement,
    now,
    record_evaluation,
)
from atlas_core.model_spec import ModelSpec
from atlas_core.records import Model
from atlas_flows.cli import app
from atlas_flows.models.dice_table import before_and_after
from atlas_models.evaluation import summarise
from typer.testing import CliRunner

# A liver in nine cases of ten, a spleen in one: over organs (0.9 + 0.1) / 2, over cases 0.82.
LIVERS, SPLEENS = 9, 1
MEAN_DICE, OVER_CASES = 0.5, 0.82


def _cases(gain: float) -> tuple[CaseAgreement, ...]:
    rows = [("liver", 0.9 - gain)] * LIVERS + [("spleen", 0.1 + gain)] * SPLEENS
    return tuple(
        CaseAgreement(
            case_id=f"case-{number}", organs=(OrganAgreement(organ=organ, dice=dice, nsd=dice),)
        )
        for number, (organ, dice) in enumerate(rows)
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A catalog of two versions, the second with worse livers and a better spleen."""
    with Catalog.open(f"sqlite:///{tmp_path / 'catalog.sqlite'}") as catalog:
        for version, gain in ((0, 0.0), (1, 0.1)):
            spec = ModelSpec(
                name="unet",
                version=version,
                architecture="unet",
                organs=("liver", "spleen"),
                spacing_mm=(1.5, 1.5, 1.5),
                patch=(96, 96, 96),
                hu_window=(-175.0, 250.0),
                activation="sigmoid",
                sha256=str(version) * 64,
            )
            catalog.register_model(Model(spec=spec, created_at=now()))
            record_evaluation(
                catalog,
                Evaluation(
                    model=spec.ref, truth_sha256="a" * 64, cases=_cases(gain), created_at=now()
                ),
            )
    return tmp_path


def _json(home: Path, *arguments: str) -> dict[str, object]:
    result = CliRunner().invoke(app, ["--home", str(home), "models", *arguments, "--json"])
    assert result.exit_code == 0, (result.output, result.exception)
    found: dict[str, object] = json.loads(result.stdout)
    return found


def test_compare_shows_what_show_and_promote_decide_by(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert summarise(_cases(0.0)).mean_dice == pytest.approx(MEAN_DICE)
    # No repository here: which version is in service is not what is asked.
    monkeypatch.setattr("atlas_flows.commands.models.listing.register_served", lambda *_: None)
    monkeypatch.setattr("atlas_flows.commands.models.listing._state", lambda *_: "stored")
    compared = _json(home, "compare", "unet@0", "unet@1")
    for version in ("unet@0", "unet@1"):
        overall = compared["models"][version]["overall"]["dice"]  # type: ignore[index]
        assert overall["mean"] == pytest.approx(MEAN_DICE)
        assert overall["mean"] != pytest.approx(OVER_CASES)
        assert overall["cases"] == LIVERS + SPLEENS
        assert _json(home, "show", version)["mean_dice"] == overall["mean"]
    # What nine livers lose the spleen gains: over cases it would be a loss of 0.08.
    dice = compared["comparison"]["dice"]  # type: ignore[index]
    assert dice["mean"]["difference"] == pytest.approx(0.0)
    assert dice["liver"]["difference"] == pytest.approx(-0.1)


def test_the_table_of_a_fine_tuning_ends_with_the_same_mean(home: Path) -> None:
    with Catalog.open(f"sqlite:///{home / 'catalog.sqlite'}") as catalog:
        rows = before_and_after(catalog, "unet", 0, 1)
    assert rows[-1] == {
        "organ": "mean",
        "version 0": "50.0",
        "version 1": "50.0",
        "difference": "+0.0",
    }
