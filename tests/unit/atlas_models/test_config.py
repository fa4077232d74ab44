"""The configurations of the paper's size: they are read, built, sized and exported as they ship.

Most of it on torch's meta device, which computes shapes and no numbers.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from atlas_core.errors import ConfigurationError
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_models.config import (
    OWN_ARCHITECTURES,
    read_config,
    read_override,
    shipped_configs,
)
from atlas_models.exporting import export_model, measure_parity
from atlas_models.networks import build_network
from torch import nn

pytestmark = pytest.mark.slow

PAPER = [name for name in shipped_configs() if name.startswith("paper/")]

MILLIONS = {
    "paper/nnunet": 16.5, "paper/segresnet": 4.7, "paper/swin_unetr": 62.2,
    "paper/unet": 19.3, "paper/unetr": 92.8,
}  # fmt: skip
"""Parameters, as docs/how-to/train-models.md gives them beside the published ones."""

OPTIMISERS = {"paper/nnunet": ("sgd", 1e-2, 3e-5)}
"""Of §B.1; all others Adam 1e-4 with weight decay 1e-5."""

paper = pytest.mark.parametrize("name", PAPER)


@functools.cache
def on_meta(name: str) -> nn.Module:
    """The network of a configuration, its numbers forgotten: Swin UNETR is only built with some."""
    return build_network(read_config(name).of_atlas(ABDOMEN_ATLAS)).to("meta")


def test_every_architecture_ships_in_both_sizes() -> None:
    for size in ("demo", "paper"):
        found = {read_config(n).architecture for n in shipped_configs() if n.startswith(size)}
        assert found == set(OWN_ARCHITECTURES)


@paper
def test_it_says_what_the_paper_says(name: str) -> None:
    config = read_config(name).of_atlas(ABDOMEN_ATLAS)
    told = (config.optimiser, config.learning_rate, config.weight_decay)
    assert told == OPTIMISERS.get(name, ("adam", 1e-4, 1e-5))
    assert (config.batch_size, config.spacing_mm, config.patch) == (4, (1.5,) * 3, (96,) * 3)
    assert (config.organs, config.hu_window) == (ABDOMEN_ATLAS.names, (-175.0, 250.0))


@paper
def test_a_batch_of_full_patches_becomes_one_logit_per_organ_and_voxel(name: str) -> None:
    config = read_config(name).of_atlas(ABDOMEN_ATLAS)
    with torch.no_grad():
        logits = on_meta(name)(torch.empty(config.batch_size, 1, 96, 96, 96, device="meta"))
    assert logits.shape == (4, len(config.organs), 96, 96, 96)


@paper
def test_the_number_of_parameters_is_the_documented_one(name: str) -> None:
    count = sum(parameter.numel() for parameter in on_meta(name).parameters())
    assert count / 1e6 == pytest.approx(MILLIONS[name], abs=0.05)
    documented = (Path(__file__).parents[3] / "docs" / "how-to" / "train-models.md").read_text()
    assert f"| {MILLIONS[name]} M |" in documented


@paper
def test_a_small_patch_is_computed_for_real(name: str) -> None:
    small = read_config(name, {"patch": (64, 64, 64)}).of_atlas(ABDOMEN_ATLAS)
    network = build_network(small).eval()
    with torch.no_grad():
        soft = torch.sigmoid(network(torch.rand(1, 1, 64, 64, 64)))
    assert soft.shape == (1, 9, 64, 64, 64)
    assert torch.isfinite(soft).all()
    assert soft.mean() < 0.3  # it starts in the belief that organs are rare


@pytest.mark.long
@pytest.mark.parametrize("name", ["paper/unet"])
def test_a_full_network_is_exported_with_parity(name: str, tmp_path: Path) -> None:
    config = read_config(name).of_atlas(ABDOMEN_ATLAS)
    network = build_network(config).eval()
    export_model(network, config, tmp_path / "m")
    rng = np.random.default_rng(0)
    window = rng.normal(0.0, 200.0, config.patch[::-1]).astype(np.float32)
    window[20:60, 20:60, 20:60] += 60.0
    parity = measure_parity(network, config, tmp_path / "m", [window])
    assert parity.probability <= 1e-4
    assert parity.byte <= 1


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("organs=heart", r"cannot work: organs \(expected a list: \[heart\], got 'heart'\)"),
        ("patch=[96, 96]", r"cannot work: patch\.2"),
        ("steps=many", r"cannot work: steps \(expected .*integer.*got 'many'\)"),
    ],
)
def test_a_setting_of_another_form_is_refused_with_the_right_one(setting: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as refused:
        read_config("demo/unet", dict([read_override(setting)]))
    assert "--set 'organs=[liver, spleen]'" in str(refused.value)


def test_an_unknown_field_is_answered_with_those_there_are() -> None:
    with pytest.raises(ConfigurationError, match=r"has no field stepps \(expected one of .*steps"):
        read_config("demo/unet", {"stepps": 1})


@pytest.mark.parametrize("setting", ["steps", "=200", "organs=[heart"])
def test_a_setting_is_a_field_and_its_value_as_yaml(setting: str) -> None:
    with pytest.raises(ConfigurationError, match=r"FIELD=VALUE, the value as YAML"):
        read_override(setting)
    assert read_override("organs=[heart]") == ("organs", ["heart"])
