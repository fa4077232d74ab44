"""The three architectures of the ensemble, at any size.

All map ``[batch, 1, z, y, x]`` (HU scaled to 0..1) to logits ``[batch, organ, z, y, x]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from monai.networks.nets import DynUNet, SwinUNETR, UNet
from torch import nn

from atlas_models.config import Architecture, TrainingConfig


def build_network(config: TrainingConfig) -> nn.Module:
    """The network of `config`, freshly initialised from its seed."""
    torch.manual_seed(config.seed)
    return OrganNetwork(_TRUNKS[config.architecture](config), config)


class OrganNetwork(nn.Module):
    """A trunk that yields features, and a 1×1×1 convolution that makes one logit per organ of them.

    The trunk's width stays a multiple of eight whatever the number of organs: with nine channels at
    full resolution the vectorised convolution kernels would be missed.
    """

    def __init__(self, trunk: nn.Module, config: TrainingConfig) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Conv3d(config.channels[0], len(config.organs), kernel_size=1)
        nn.init.constant_(cast(nn.Parameter, self.head.bias), config.output_bias)

    def forward(self, scaled: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.head(self.trunk(scaled)))


def _unet(config: TrainingConfig) -> nn.Module:
    return UNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=config.channels[0],
        channels=config.channels,
        strides=(2,) * (len(config.channels) - 1),
        num_res_units=1,
    )


def _nnunet(config: TrainingConfig) -> nn.Module:
    levels = len(config.channels)
    return DynUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=config.channels[0],
        kernel_size=[3] * levels,
        strides=[1] + [2] * (levels - 1),
        upsample_kernel_size=[2] * (levels - 1),
        filters=list(config.channels),
        norm_name=("instance", {"affine": True}),
    )


def _swin_unetr(config: TrainingConfig) -> nn.Module:
    network = SwinUNETR(
        spatial_dims=3,
        in_channels=1,
        out_channels=config.channels[0],
        feature_size=config.channels[0],
        window_size=4,
        depths=(2, 2, 1, 1),
        num_heads=(2, 4, 4, 4),
    )
    if not config.bottleneck_block:
        network.encoder10 = nn.Identity()
    return network


_TRUNKS: Mapping[Architecture, Callable[[TrainingConfig], nn.Module]] = {
    "unet": _unet,
    "nnunet": _nnunet,
    "swin_unetr": _swin_unetr,
}
