"""The Dice of a network on held-out cases, as its training measures it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from atlas_models.training import TrainingCase
from atlas_models.training.patches import AIR_HU
from atlas_models.training.validation import dice_sums
from tiny_training import case_of, tiny_config

CASE = case_of(0)
SHORT: TrainingCase = replace(CASE, ct=CASE.ct[6:10], target=CASE.target[:, 6:10])


@pytest.mark.parametrize("padding_hu", [None, -50.0, "edge"])
def test_beyond_a_short_ct_is_what_the_configuration_says(padding_hu: float | str | None) -> None:
    config = tiny_config(padding_hu=padding_hu)
    seen: list[torch.Tensor] = []

    def bright_is_liver(hu: torch.Tensor) -> torch.Tensor:
        seen.append(hu)
        return torch.cat([hu - 75.0, torch.full_like(hu, -1.0)], dim=1)

    sums = dice_sums(bright_is_liver, [SHORT], config, torch.device("cpu"))
    assert sums[0, 0] > 0.95
    values = torch.cat([window.flatten() for window in seen])
    beyond = {None: AIR_HU, "edge": None}.get(padding_hu, padding_hu)
    if beyond is None:
        assert values.min() == SHORT.ct.min()
    else:
        assert (values == beyond).any()
