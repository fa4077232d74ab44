"""The three architectures of the ensemble, at any size.

All map ``[batch, 1, z, y, x]`` (HU scaled to 0..1) to logits ``[batch, organ, z, y, x]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from monai.networks.nets import DynUNet, SwinUNETR, UNet
from torch import nn

from atlas_models.config import SWIN_MULTIPLE, Architecture, TrainingConfig


def build_network(config: TrainingConfig) -> nn.Module:
    """The network of `config`, freshly initialised from its seed."""
    torch.manual_seed(config.seed)
    return OrganNetwork(_TRUNKS[config.architecture](config), config)


class OrganNetwork(nn.Module):
    """A trunk between two rearrangements: blocks of ``fold³`` voxels become channels before it, and
    its channels become voxels of one logit per organ behind it.

    With ``fold`` 2 nothing of the input is lost, all convolutions run on an eighth of the voxels,
    and each block's logits are still free to differ voxel by voxel. ``fold`` 1 is the plain trunk.
    """

    def __init__(self, trunk: nn.Module, config: TrainingConfig) -> None:
        super().__init__()
        self.trunk = trunk
        self.fold = config.fold
        self.organs = len(config.organs)
        self.head = nn.Conv3d(config.channels[0], self.organs * config.fold**3, kernel_size=1)
        nn.init.constant_(cast(nn.Parameter, self.head.bias), config.output_bias)

    def forward(self, scaled: torch.Tensor) -> torch.Tensor:
        if self.fold == 1:
            return cast(torch.Tensor, self.head(self.trunk(scaled)))
        return unfold_channels(self.head(self.trunk(fold_voxels(scaled, self.fold))), self.fold)


def fold_voxels(volume: torch.Tensor, fold: int) -> torch.Tensor:
    """``[batch, c, z, y, x]`` → ``[batch, c·fold³, z/fold, y/fold, x/fold]``."""
    _, c, z, y, x = volume.shape
    blocks = volume.reshape(-1, c, z // fold, fold, y // fold, fold, x // fold, fold)
    return blocks.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(
        -1, c * fold**3, z // fold, y // fold, x // fold
    )


def unfold_channels(volume: torch.Tensor, fold: int) -> torch.Tensor:
    """The inverse of `fold_voxels`."""
    _, c, z, y, x = volume.shape
    blocks = volume.reshape(-1, c // fold**3, fold, fold, fold, z, y, x)
    return blocks.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(
        -1, c // fold**3, z * fold, y * fold, x * fold
    )


def _unet(config: TrainingConfig) -> nn.Module:
    return UNet(
        spatial_dims=3,
        in_channels=config.fold**3,
        out_channels=config.channels[0],
        channels=config.channels,
        strides=(2,) * (len(config.channels) - 1),
        num_res_units=1,
    )


def _nnunet(config: TrainingConfig) -> nn.Module:
    levels = len(config.channels)
    return DynUNet(
        spatial_dims=3,
        in_channels=config.fold**3,
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
        in_channels=config.fold**3,
        out_channels=config.channels[0],
        feature_size=config.channels[0],
        window_size=4,
        depths=(2, 2, 1, 1),
        num_heads=(2, 4, 4, 4),
        # Five halvings may leave one voxel, of which an instance norm knows no spread.
        norm_name=("group", {"num_groups": 4}),
    )
    if min(config.patch) == SWIN_MULTIPLE * config.fold:
        # At a single voxel a 3×3×3 convolution has nothing to convolve, and half of all weights.
        network.encoder10 = nn.Identity()
    return network


_TRUNKS: Mapping[Architecture, Callable[[TrainingConfig], nn.Module]] = {
    "unet": _unet,
    "nnunet": _nnunet,
    "swin_unetr": _swin_unetr,
}
