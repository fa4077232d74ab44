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

REFINED_CHANNELS = 8
"""Features at full resolution behind a trunk at half resolution."""


def build_network(config: TrainingConfig) -> nn.Module:
    """The network of `config`, freshly initialised from its seed."""
    torch.manual_seed(config.seed)
    trunk, width = _TRUNKS[config.architecture](config)
    return OrganNetwork(trunk, width, config)


class OrganNetwork(nn.Module):
    """A trunk that yields features, and a 1×1×1 convolution that makes one logit per organ of them.

    The trunk's width stays a multiple of eight whatever the number of organs: with nine channels at
    full resolution the vectorised convolution kernels would be missed.

    Args:
        width: channels that the trunk yields.
    """

    def __init__(self, trunk: nn.Module, width: int, config: TrainingConfig) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Conv3d(width, len(config.organs), kernel_size=1)
        nn.init.constant_(cast(nn.Parameter, self.head.bias), config.output_bias)

    def forward(self, scaled: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.head(self.trunk(scaled)))


_Trunk = tuple[nn.Module, int]


def _unet(config: TrainingConfig) -> _Trunk:
    trunk = UNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=config.channels[0],
        channels=config.channels,
        strides=(2,) * (len(config.channels) - 1),
        num_res_units=1,
    )
    return trunk, config.channels[0]


def _nnunet(config: TrainingConfig) -> _Trunk:
    levels = len(config.channels)
    width = config.channels[0]
    trunk = DynUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=config.channels[0],
        kernel_size=[3] * levels,
        strides=[config.stem_stride] + [2] * (levels - 1),
        upsample_kernel_size=[2] * (levels - 1),
        filters=list(config.channels),
        norm_name=("instance", {"affine": True}),
    )
    if config.stem_stride == 1:
        return trunk, width
    return nn.Sequential(trunk, _refinement(width)), REFINED_CHANNELS


def _refinement(width: int) -> nn.Module:
    """From features at half resolution to a few at full resolution: borders finer than a voxel of
    the trunk."""
    return nn.Sequential(
        nn.ConvTranspose3d(width, REFINED_CHANNELS, kernel_size=2, stride=2),
        nn.LeakyReLU(0.01, inplace=True),
        nn.Conv3d(REFINED_CHANNELS, REFINED_CHANNELS, kernel_size=3, padding=1),
        nn.LeakyReLU(0.01, inplace=True),
    )


def _swin_unetr(config: TrainingConfig) -> _Trunk:
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
    return network, config.channels[0]


_TRUNKS: Mapping[Architecture, Callable[[TrainingConfig], _Trunk]] = {
    "unet": _unet,
    "nnunet": _nnunet,
    "swin_unetr": _swin_unetr,
}
