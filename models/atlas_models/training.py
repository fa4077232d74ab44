"""Training of one network on cases that may be labelled in part."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from atlas_models.config import TrainingConfig
from atlas_models.data import PatchSampler, TrainingCase, positive_weights
from atlas_models.losses import OrganLoss
from atlas_models.networks import build_network

GRADIENT_NORM = 5.0
"""Gradients are cut to this norm: one odd patch at the peak learning rate must not undo the run."""

WARM_UP_SHARE = 0.15
"""Of the steps, until the learning rate peaks."""

EMPHASIS_SHARE = 0.5
"""Of the steps, while the emphasis on rare organs falls from full to its floor; see `OrganLoss`."""


@dataclass(frozen=True)
class Progress:
    """Where a training run stands."""

    step: int
    steps: int
    loss: float
    seconds: float


@dataclass(frozen=True)
class Trained:
    """A trained network and how it went.

    Attributes:
        losses: of every step.
        seconds: wall time.
    """

    network: nn.Module
    losses: tuple[float, ...]
    seconds: float


def scale_hu(hu: torch.Tensor, window: tuple[float, float]) -> torch.Tensor:
    """Hounsfield units clipped to `window` and scaled to 0..1, as in the exported graph."""
    low, high = window
    return (hu.clamp(low, high) - low) / (high - low)


def train(
    config: TrainingConfig,
    cases: Sequence[TrainingCase],
    *,
    on_progress: Callable[[Progress], None] | None = None,
) -> Trained:
    """Train the network of `config` on `cases`, from scratch.

    Everything follows from the seed, on one platform with one number of threads.
    """
    network = build_network(config).train()
    loss_of = OrganLoss(torch.from_numpy(positive_weights(cases, config.positive_weight_cap)))
    sampler = PatchSampler(cases, config.patch, config.seed)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, config.learning_rate, total_steps=config.steps, pct_start=WARM_UP_SHARE
    )
    losses: list[float] = []
    started = time.monotonic()
    for step in range(1, config.steps + 1):
        hu, target, labelled = (torch.from_numpy(part) for part in sampler.draw(config.batch_size))
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            logits = network(scale_hu(hu, config.hu_window))
        emphasis = max(config.emphasis_floor, 1.0 - step / (EMPHASIS_SHARE * config.steps))
        loss = loss_of(logits.float(), target, labelled, emphasis)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_NORM)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if on_progress is not None:
            on_progress(Progress(step, config.steps, losses[-1], time.monotonic() - started))
    return Trained(network.eval(), tuple(losses), time.monotonic() - started)
