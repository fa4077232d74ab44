"""The loss of partially labelled training: an organ counts only where a case has its label."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

SMOOTH = 1.0
"""Added to numerator and denominator of the Dice term (voxels), so that an organ that is absent,
and predicted absent, costs nothing."""


class OrganLoss(nn.Module):
    """Weighted binary cross entropy plus soft Dice, per organ, masked by what is labelled.

    Args:
        positive_weight: how much more voxels of each organ count than background, ``[organ]``.
    """

    positive_weight: torch.Tensor

    def __init__(self, positive_weight: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("positive_weight", positive_weight.reshape(1, -1, 1, 1, 1))

    def forward(
        self,
        logits: torch.Tensor,
        target: torch.Tensor,
        labelled: torch.Tensor,
        emphasis: float = 1.0,
        counted: torch.Tensor | None = None,
        focus: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mean loss over the labelled organs of the batch.

        A weight above one makes rare organs appear early, and too large: at weight w the best
        answer to a voxel that is half organ is w / (w + 1). So training lets `emphasis` fall; at 0,
        in turn, the smallest organs come out a fifth too small, so it keeps a floor.

        Args:
            logits: ``[batch, organ, z, y, x]``.
            target: share of each voxel that the organ fills, 0..1, same shape.
            labelled: how much the case's label of the organ counts, ``[batch, organ]``; an organ
                with 0 has none, and neither costs nor teaches anything.
            emphasis: exponent of the positive weights; 1 applies them, 0 leaves them out.
            counted: what the sum is divided by; None: the sum of `labelled`. Where several
                processes share a batch, it is the mean of their sums, so that the mean of their
                gradients is the gradient of the whole batch.
            focus: how much each voxel counts against the mean of its organ and patch, like
                `target`; None: all alike.
        """
        space = (2, 3, 4)
        weight = 1.0 + (self.positive_weight**emphasis - 1.0) * target
        weight = weight if focus is None else weight * focus
        entropy = functional.binary_cross_entropy_with_logits(
            logits, target, weight=weight, reduction="none"
        ).mean(space)

        def volume(share: torch.Tensor) -> torch.Tensor:
            return (share if focus is None else share * focus).sum(space)

        soft = torch.sigmoid(logits)
        both = volume(soft * target)
        # Squares in the denominator: a voxel that is half organ is right at one half.
        sizes = volume(soft.square()) + volume(target.square())
        dice = 1.0 - (2.0 * both + SMOOTH) / (sizes + SMOOTH)
        total = labelled.sum() if counted is None else counted
        summed = ((entropy + dice) * labelled).sum()
        # A batch without any label costs nothing, rather than 0 / 0.
        return summed / torch.where(total > 0, total, torch.ones_like(total))
