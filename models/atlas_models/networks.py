"""The architectures of the ensemble, at any size.

All map ``[batch, 1, z, y, x]`` (HU scaled to 0..1) to logits ``[batch, organ, z, y, x]`` whose
sigmoid is the probability, with a softmax head too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from monai.networks.nets import UNETR, DynUNet, SegResNet, SwinUNETR, UNet
from torch import nn

from atlas_models.config import ForeignNetwork, TrainingConfig
from atlas_models.exported_network import InputTransform

REFINED_CHANNELS = 8
"""Features at full resolution behind a trunk at half resolution."""

CERTAIN = -1e-6
"""Largest logarithm of a probability: keeps log(1 - p) finite in float32."""


def build_network(config: TrainingConfig) -> nn.Module:
    """The network of `config`, freshly initialised from its seed."""
    torch.manual_seed(config.seed)
    if config.foreign is not None:
        return ForeignOrgans(foreign_network(config.architecture, config.foreign), config)
    trunk, width = _TRUNKS[config.architecture](config)
    return OrganNetwork(trunk, width, config)


class OrganNetwork(nn.Module):
    """A trunk that yields features, and a 1×1×1 convolution that makes one logit per organ of them.

    The trunk's width stays a multiple of eight whatever the number of organs: with nine channels at
    full resolution the vectorised convolution kernels would be missed.

    With a softmax the convolution has one more channel, the background, which comes last; it is
    turned into the logit of each organ against all the rest, log p / (1 - p). So losses, metrics
    and the exported head are the same for both activations.

    Args:
        width: channels that the trunk yields.
    """

    def __init__(self, trunk: nn.Module, width: int, config: TrainingConfig) -> None:
        super().__init__()
        self.trunk = trunk
        self.softmax = config.activation == "softmax"
        organs = len(config.organs)
        self.head = nn.Conv3d(width, organs + int(self.softmax), kernel_size=1)
        bias = cast(nn.Parameter, self.head.bias)
        nn.init.constant_(bias, config.output_bias)
        if self.softmax:
            nn.init.zeros_(bias[organs:])

    def forward(self, scaled: torch.Tensor) -> torch.Tensor:
        output = cast(torch.Tensor, self.head(self.trunk(scaled)))
        return _against_the_rest(output) if self.softmax else output


def _against_the_rest(output: torch.Tensor) -> torch.Tensor:
    """Logit of every class but the last under a softmax: its sigmoid is the softmax."""
    log_p = output.float().log_softmax(dim=1)[:, :-1]
    return log_p - torch.log(1.0 - torch.exp(log_p.clamp(max=CERTAIN)))


class ForeignOrgans(nn.Module):
    """A network from elsewhere with the interface of ours: HU scaled to 0..1 in, logits out.

    Args:
        network: as `foreign_network` builds it.
    """

    def __init__(self, network: nn.Module, config: TrainingConfig) -> None:
        super().__init__()
        foreign = config.foreign
        assert foreign is not None
        self.network = network
        self.activation = foreign.activation
        self.channels = foreign.channels
        low, high = config.hu_window
        self.window = (low, high - low)
        self.transform = InputTransform(
            low, high, foreign.shift, foreign.scale, foreign.axes, foreign.flipped
        )

    def forward(self, scaled: torch.Tensor) -> torch.Tensor:
        low, width = self.window
        hu = self.transform.to_network_axes(scaled * width + low)
        output = self.network(self.transform.intensities(hu))
        if output.dim() == hu.dim() + 1:
            output = output[:, 0]  # a DynUNet in training: the others are of coarser levels
        return self._logits(self.transform.to_canonical_axes(output))

    def _logits(self, output: torch.Tensor) -> torch.Tensor:
        """Logit of every organ, of which one or more channels may mean it."""
        if self.activation == "softmax":
            log_p = output.float().log_softmax(dim=1)
            joined = [log_p[:, group].logsumexp(1, keepdim=True) for group in self.channels]
            organs = torch.cat(joined, 1).clamp(max=CERTAIN)
            return organs - torch.log(1.0 - torch.exp(organs))
        if self.activation == "none":
            output = torch.logit(output.float(), eps=-CERTAIN)
        return torch.cat([output[:, group].amax(1, keepdim=True) for group in self.channels], 1)


def foreign_network(architecture: str, foreign: ForeignNetwork) -> nn.Module:
    """One of MONAI's networks, freshly initialised.

    Raises:
        TypeError, ValueError, AssertionError, KeyError: arguments that it does not take.
    """
    return _MONAI[architecture](
        spatial_dims=3, in_channels=1, out_channels=foreign.outputs, **foreign.arguments
    )


_MONAI: Mapping[str, Callable[..., nn.Module]] = {
    "unet": UNet,
    "swin_unetr": SwinUNETR,
    "segresnet": SegResNet,
    "unetr": UNETR,
    "dynunet": DynUNet,
}

_Trunk = tuple[nn.Module, int]


def _unet(config: TrainingConfig) -> _Trunk:
    trunk = UNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=config.channels[0],
        channels=config.channels,
        strides=(2,) * (len(config.channels) - 1),
        num_res_units=config.residual_units,
    )
    return trunk, config.channels[0]


def _nnunet(config: TrainingConfig) -> _Trunk:
    levels = len(config.channels)
    width = config.channels[0]
    trunk = DynUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=width,
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
        window_size=config.attention_window,
        depths=config.depths,
        num_heads=config.heads,
    )
    if not config.bottleneck_block:
        network.encoder10 = nn.Identity()
    return network, config.channels[0]


def _segresnet(config: TrainingConfig) -> _Trunk:
    trunk = SegResNet(
        spatial_dims=3,
        init_filters=config.channels[0],
        in_channels=1,
        out_channels=config.channels[0],
        blocks_down=config.depths,
        blocks_up=(1,) * (len(config.depths) - 1),
    )
    return trunk, config.channels[0]


def _unetr(config: TrainingConfig) -> _Trunk:
    trunk = UNETR(
        spatial_dims=3,
        in_channels=1,
        out_channels=config.channels[0],
        img_size=config.patch[::-1],
        feature_size=config.channels[0],
        hidden_size=config.hidden,
        mlp_dim=4 * config.hidden,
        num_heads=config.heads[0],
    )
    return trunk, config.channels[0]


_TRUNKS: Mapping[str, Callable[[TrainingConfig], _Trunk]] = {
    "unet": _unet,
    "nnunet": _nnunet,
    "swin_unetr": _swin_unetr,
    "segresnet": _segresnet,
    "unetr": _unetr,
}
