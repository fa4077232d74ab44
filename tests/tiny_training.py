"""A network and cases of a hand's size, for tests that train."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from atlas_models.config import TrainingConfig
from atlas_models.training import TrainedNetwork, TrainingCase


def tiny_config(**fields: Any) -> TrainingConfig:
    """A U-Net of two levels for liver and spleen; `fields` replace its own."""
    own: dict[str, Any] = {
        "name": "tiny",
        "architecture": "unet",
        "channels": (8, 16),
        "organs": ("liver", "spleen"),
        "spacing_mm": (10.0, 10.0, 10.0),
        "patch": (16, 16, 16),
        "seed": 3,
        "steps": 12,
        "learning_rate": 1e-2,
        "validate_every": 4,
    }
    return TrainingConfig.model_validate(own | fields)


def case_of(number: int) -> TrainingCase:
    """A bright ball (the liver) in noise; the spleen is unknown in every other case."""
    rng = np.random.Generator(np.random.PCG64(number))
    z, y, x = np.indices((16, 18, 20))
    centre = rng.uniform(5.0, 11.0, 3)
    ball = (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 < 16.0
    hu = rng.normal(0.0, 20.0, ball.shape) + 150.0 * ball
    target = np.stack([ball, np.zeros_like(ball)]).astype(np.uint8) * np.uint8(255)
    weight = np.array([1.0, number % 2], np.float32)
    return TrainingCase(hu.astype(np.float32), target, weight, id=f"case-{number}")


TINY = tiny_config()
CASES = [case_of(number) for number in range(5)]
HELD_OUT = [case_of(number) for number in (10, 11)]


def same_weights(one: TrainedNetwork, other: TrainedNetwork) -> bool:
    """Whether two networks are equal to the bit."""
    weights, others = one.weights(), other.weights()
    return all(torch.equal(weights[name], others[name]) for name in weights)


def two_process_config(batch_size: int) -> TrainingConfig:
    """Plain gradient steps: what two processes do with one patch each, one does with both."""
    return tiny_config(
        steps=3, batch_size=batch_size, optimiser="sgd", schedule="constant", validate_every=3
    )
