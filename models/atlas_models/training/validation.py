"""Validation during training: Dice on the model's own grid, organ by organ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from atlas_core.overlap import dice
from monai.inferers import sliding_window_inference
from numpy.typing import NDArray

from atlas_models.config import TrainingConfig
from atlas_models.training.patches import AIR_HU, HALF, TrainingCase

OVERLAP = 0.25
"""Of neighbouring windows: less than in serving, as a trend is enough here."""


@dataclass(frozen=True)
class Validation:
    """The Dice of a network after one step.

    Attributes:
        step: after which it was measured.
        dice: mean over the cases that have a label, by organ; organs without any are missing.
    """

    step: int
    dice: Mapping[str, float]

    @property
    def mean_dice(self) -> float:
        """Mean over the organs; 0 where no organ could be measured."""
        return sum(self.dice.values()) / len(self.dice) if self.dice else 0.0


def dice_sums(
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    cases: Sequence[TrainingCase],
    config: TrainingConfig,
    device: torch.device,
) -> NDArray[np.float64]:
    """Sum of the Dice of every organ over `cases`, and how many cases counted: ``[2, organ]``.

    A case counts for an organ if it has a label of it that is not empty, or was predicted.

    Args:
        logits_of: HU ``[batch, 1, z, y, x]`` on `device` → logits ``[batch, organ, z, y, x]``.
    """
    sums = np.zeros((2, len(config.organs)))
    for case in cases:
        found = _prediction(logits_of, case, config, device)
        for channel in np.flatnonzero(case.labelled):
            truth = case.target[channel] > HALF
            overlap = dice(truth, found[channel])
            if overlap is not None:
                sums[0, channel] += overlap
                sums[1, channel] += 1
    return sums


def _prediction(
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    case: TrainingCase,
    config: TrainingConfig,
    device: torch.device,
) -> NDArray[np.bool_]:
    """Where each organ is predicted, ``[organ, z, y, x]``."""
    hu = torch.from_numpy(np.array(case.ct))[None, None].to(device)
    edge = config.padding_hu == "edge"
    air = AIR_HU if config.padding_hu is None else config.padding_hu
    with torch.no_grad():
        logits = sliding_window_inference(
            hu,
            config.patch[::-1],
            sw_batch_size=1,
            predictor=logits_of,
            overlap=OVERLAP,
            mode="gaussian",
            padding_mode="replicate" if edge else "constant",
            cval=0.0 if edge else air,  # torch takes no other value with "replicate"
        )
    return np.asarray((logits[0] > 0.0).cpu().numpy())
