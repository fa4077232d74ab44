"""Curves of a training run: TensorBoard event files and one picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from atlas_core.atomic_writes import replace_file
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from atlas_models.training.validation import Validation

EVENTS_FOLDER = "events"
PICTURE_FILE = "curves.png"


class Curves:
    """Writes the curves of a run into its folder.

    Args:
        after: step that the run continues from; what a killed run noted beyond it is hidden.
    """

    def __init__(self, folder: Path, after: int) -> None:
        self._folder = folder
        self._events = SummaryWriter(str(folder / EVENTS_FOLDER), purge_step=after + 1)

    def step(self, step: int, loss: float, learning_rate: float) -> None:
        self._events.add_scalar("loss", loss, step)
        self._events.add_scalar("learning_rate", learning_rate, step)

    def validation(self, validation: Validation) -> None:
        self._events.add_scalar("dice/mean", validation.mean_dice, validation.step)
        for organ, dice in validation.dice.items():
            self._events.add_scalar(f"dice/{organ}", dice, validation.step)

    def draw(self, losses: Sequence[float], validations: Sequence[Validation]) -> None:
        """Put everything on disk: the events so far, and the picture anew."""
        self._events.flush()
        replace_file(self._folder / PICTURE_FILE, _picture(losses, validations))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._events.close()


def _picture(losses: Sequence[float], validations: Sequence[Validation]) -> bytes:
    """Loss (its running mean in front) and Dice over steps, as PNG."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = np.arange(1, len(losses) + 1)
    left.plot(steps, losses, color="0.8", label="loss")
    width = max(1, len(losses) // 50)
    if len(losses) >= width:
        mean = np.convolve(losses, np.full(width, 1.0 / width), mode="valid")
        left.plot(steps[width - 1 :], mean, color="C0", label=f"mean of {width}")
    left.set(xlabel="step", ylabel="Dice + BCE", ylim=(0, None))
    left.legend()
    at = [validation.step for validation in validations]
    for organ in sorted({organ for validation in validations for organ in validation.dice}):
        dice = [validation.dice.get(organ, np.nan) for validation in validations]
        right.plot(at, dice, linewidth=1, label=organ)
    right.plot(at, [v.mean_dice for v in validations], color="black", linewidth=2, label="mean")
    right.set(xlabel="step", ylabel="Dice (validation)", ylim=(0, 1))
    right.legend(fontsize="x-small", ncols=2)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100)
    return data.getvalue()
