"""What an exported graph computes, as a torch module: Hounsfield units in, bytes out.

HU ``[batch, 1, z, y, x]`` → the network's own axes and intensities → network → probabilities
→ organs in order, canonical axes → round(255 · p), uint8 ``[batch, organ, z, y, x]``
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import nn

Activation = Literal["sigmoid", "softmax", "none"]

SPATIAL = 2
"""Axes before the spatial ones: batch and channel."""


@dataclass(frozen=True)
class InputTransform:
    """How Hounsfield units become what a network was trained on: clipped, shifted, divided, turned.

    Attributes:
        low, high: HU are clipped to these.
        shift, scale: the network sees (clipped - shift) / scale.
        axes: the network's spatial axis i is axis axes[i] of our (z, y, x).
        flipped: of our (z, y, x), the axes that the network's training data ran against RAS+.
    """

    low: float
    high: float
    shift: float
    scale: float
    axes: tuple[int, int, int] = (0, 1, 2)
    flipped: tuple[int, ...] = ()

    @classmethod
    def window(cls, low: float, high: float) -> Self:
        """Clipped to a window and scaled to 0..1, on canonical axes."""
        return cls(low, high, low, high - low)

    def intensities(self, hu: torch.Tensor) -> torch.Tensor:
        """Normalised values of Hounsfield units of any shape."""
        return (hu.clamp(self.low, self.high) - self.shift) / self.scale

    def to_network_axes(self, canonical: torch.Tensor) -> torch.Tensor:
        """``[batch, channel, z, y, x]`` on the network's axes."""
        if self.flipped:
            canonical = canonical.flip([SPATIAL + axis for axis in self.flipped])
        if self.axes == (0, 1, 2):
            return canonical
        return canonical.permute(0, 1, *(SPATIAL + axis for axis in self.axes))

    def to_canonical_axes(self, own: torch.Tensor) -> torch.Tensor:
        """The network's ``[batch, channel, …]`` as ``[batch, channel, z, y, x]``."""
        if self.axes != (0, 1, 2):
            own = own.permute(0, 1, *(SPATIAL + self.axes.index(axis) for axis in range(3)))
        return own.flip([SPATIAL + axis for axis in self.flipped]) if self.flipped else own


@dataclass(frozen=True)
class Head:
    """How a network's output becomes one probability per organ.

    Attributes:
        activation: over the network's channels; "none" where it yields probabilities.
        channels: of each organ, the network's channels that mean it, whose probabilities are added
            (an organ and the tumour in it); None: channel c is organ c.
    """

    activation: Activation = "sigmoid"
    channels: tuple[tuple[int, ...], ...] | None = None

    def probabilities(self, output: torch.Tensor) -> torch.Tensor:
        """``[batch, organ, …]`` in [0, 1] of a network's output ``[batch, channel, …]``."""
        if self.activation == "softmax":
            output = output.softmax(dim=1)
        elif self.activation == "sigmoid":
            output = output.sigmoid()
        if self.channels is None:
            return output
        return torch.cat([_joined(output, group, self.activation) for group in self.channels], 1)


def _joined(soft: torch.Tensor, group: Sequence[int], activation: Activation) -> torch.Tensor:
    """Channels of one organ as one ``[batch, 1, …]``."""
    joined = soft[:, group[0] : group[0] + 1]
    for channel in group[1:]:
        other = soft[:, channel : channel + 1]
        # Classes of a softmax exclude each other; sigmoids may both claim a voxel.
        joined = joined + other if activation == "softmax" else torch.maximum(joined, other)
    return joined.clamp(0.0, 1.0) if len(group) > 1 else joined


class ExportedNetwork(nn.Module):
    """What the graph computes: HU ``[batch, 1, z, y, x]`` → uint8 ``[batch, organ, z, y, x]``.

    Args:
        input_transform: what the network expects of its input; a pair is taken as a HU window,
            see `InputTransform.window`.
    """

    def __init__(
        self,
        network: nn.Module,
        input_transform: InputTransform | tuple[float, float],
        head: Head | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.input_transform = (
            input_transform
            if isinstance(input_transform, InputTransform)
            else InputTransform.window(*input_transform)
        )
        self.head = head or Head()

    def probabilities(self, ct: torch.Tensor) -> torch.Tensor:
        """Soft predictions in [0, 1] before they are rounded."""
        seen = self.input_transform.intensities(self.input_transform.to_network_axes(ct))
        return self.head.probabilities(self.input_transform.to_canonical_axes(self.network(seen)))

    def forward(self, ct: torch.Tensor) -> torch.Tensor:
        return torch.round(self.probabilities(ct) * 255.0).to(torch.uint8)


class FoldMean(nn.Module):
    """The mean of the outputs of several networks: nnU-Net averages logits over its folds."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.folds = nn.ModuleList(networks)

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        total = self.folds[0](seen)
        for fold in self.folds[1:]:
            total = total + fold(seen)
        return total / len(self.folds)
