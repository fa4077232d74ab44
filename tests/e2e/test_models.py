"""From labels to a version in service and back, by commands, on phantoms and a running stack."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from atlas_embedded.settings import EmbeddedSettings
from atlas_embedded.stack import down, up
from atlas_flows.cli import app
from atlas_models.serving import read_spec
from atlasloop.client import AttentionClient
from stack import free_settings
from typer.testing import CliRunner

pytestmark = pytest.mark.stack

SMALL = ("name=small", "channels=[8,16]", "patch=[32,32,32]", "spacing_mm=[9,9,9]", "steps=3")
"""Of the demo U-Net: what takes seconds. What it learns in three steps is not looked at."""


def atlasloop(settings: EmbeddedSettings, *arguments: str) -> str:
    """The command in this process, which loads torch once; its standard output."""
    done = CliRunner().invoke(app, list(arguments), env=settings.environment())
    assert done.exit_code == 0, f"{arguments}: {done.stderr} {done.exception!r}"
    return done.stdout


def test_a_model_is_trained_finetuned_promoted_and_rolled_back(tmp_path: Path) -> None:
    settings = free_settings(tmp_path / "home", tmp_path / "models", ("triton", "attention"))
    phantoms = tmp_path / "phantoms"
    make = ("phantoms", str(phantoms), "--cases", "6", "--columns", "48", "--labels", "truth")
    atlasloop(settings, *make)
    atlasloop(settings, "import", str(phantoms), "--dataset", "p", "--preset", "phantoms")
    chosen = [part for setting in SMALL for part in ("--set", setting)]
    share = ("--validation-share", "0.4")
    atlasloop(settings, "models", "train", "demo/unet", *chosen, *share)
    atlasloop(
        settings, "models", "export", "small@0", "--output", str(tmp_path / "models" / "small")
    )
    try:
        up(settings)
        tuned = atlasloop(
            settings, "models", "finetune", "small", "demo/unet", *chosen, *share, "--json"
        )
        assert json.loads(tuned)["version"] == 1
        done = atlasloop(settings, "models", "promote", "small@1", "--force", "--json")
        assert json.loads(done)["previous_version"] == 0
        assert in_service(settings) == 1
        shown = json.loads(atlasloop(settings, "models", "show", "small@1", "--json"))
        assert shown["parent"] == "small@0"
        assert shown["learnt_from"]
        judged = set(json.loads(done)["evidence"])
        assert {"mean_dice", "mean_dice_before", "cases"} <= judged
        atlasloop(settings, "models", "rollback", "small")
        assert in_service(settings) == 0
        atlasloop(settings, "models", "export", "small@1", "--output", str(tmp_path / "out"))
        assert read_spec(tmp_path / "out").version == 1
    finally:
        down(settings)


def in_service(settings: EmbeddedSettings) -> int:
    with AttentionClient(settings.attention_address) as client:
        (model,) = client.info().models
        return model.version
