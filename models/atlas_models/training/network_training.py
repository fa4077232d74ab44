"""Training and fine-tuning of one network on cases that may be labelled in part.

    trained = train(config, cases, validation=held_out, run=RunOptions(folder))
    tuned = finetune(trained.weights(), config, more_cases)

Everything follows from configuration, cases and seed (on one platform with one number of threads):
patch n depends on the seed and n only, so a run that was killed at any step and resumed from its
checkpoint ends with the same weights, to the bit, as an uninterrupted one.

Several GPUs or nodes run the same function through Lightning Fabric (DDP), started by ``torchrun``:
each process takes its own patches of the common batch.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from atlas_core.errors import InvalidInput
from lightning_fabric import Fabric
from torch import nn

from atlas_models.config import TrainingConfig
from atlas_models.exporting import load_weights
from atlas_models.networks import build_network
from atlas_models.training.augmentation import augmentation
from atlas_models.training.curves import Curves
from atlas_models.training.losses import OrganLoss
from atlas_models.training.patches import Batch, PatchSampler, TrainingCase, positive_weights
from atlas_models.training.run_state import read_checkpoint, run_key, write_checkpoint
from atlas_models.training.validation import Validation, dice_sums

GRADIENT_NORM = 5.0
"""Gradients are cut to this norm: one odd patch at the peak learning rate must not undo the run."""

WARM_UP_SHARE = 0.15
"""Of the steps, until the learning rate of `one_cycle` peaks."""

EMPHASIS_SHARE = 0.5
"""Of the steps, while the emphasis on rare organs falls from full to its floor; see `OrganLoss`."""

POLY_POWER = 0.9
"""Of nnU-Net's decay."""

SGD_MOMENTUM = 0.99

_PRECISION = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}


class Diverged(InvalidInput):
    """The loss or the weights of a run are no longer finite; nothing of that step was kept."""


@dataclass(frozen=True)
class TrainingProgress:
    """Where a training run stands.

    Attributes:
        seconds: wall time of this process.
        dice: mean Dice of the newest validation; None before the first.
    """

    step: int
    steps: int
    loss: float
    seconds: float
    dice: float | None = None


@dataclass(frozen=True)
class RunOptions:
    """Where and how a training runs; only `devices` and `nodes` change its result.

    Attributes:
        folder: of checkpoints and curves; None: neither is written. A run that finds its own
            checkpoint there continues from it.
        checkpoint_every: steps between checkpoints.
        data_key: identifies what the ids of the cases do not (hashes of labels and weights), so
            that a checkpoint is not continued on other data.
        accelerator: "cpu", "cuda" or "auto".
        devices, nodes: processes per machine, and machines; started by ``torchrun``.
        loaders: threads that prepare batches ahead; 0: the training thread itself.
    """

    folder: Path | None = None
    checkpoint_every: int = 50
    data_key: str = ""
    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    loaders: int = 0


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network and the course of its training.

    Attributes:
        network: with the weights of the best validation; of the last step where there was none.
        losses: of every step.
        seconds: wall time of this process.
        validations: in order.
        best: the validation whose weights these are; None where there was none.
    """

    network: nn.Module
    losses: tuple[float, ...]
    seconds: float
    validations: tuple[Validation, ...] = ()
    best: Validation | None = None

    def weights(self) -> dict[str, torch.Tensor]:
        """What `finetune` starts from."""
        return self.network.state_dict()


def scale_hu(hu: torch.Tensor, window: tuple[float, float]) -> torch.Tensor:
    """Hounsfield units clipped to `window` and scaled to 0..1, as in the exported graph."""
    low, high = window
    return (hu.clamp(low, high) - low) / (high - low)


def train(
    config: TrainingConfig,
    cases: Sequence[TrainingCase],
    *,
    validation: Sequence[TrainingCase] = (),
    run: RunOptions | None = None,
    on_progress: Callable[[TrainingProgress], None] | None = None,
) -> TrainedNetwork:
    """Train the network of `config` on `cases`, from scratch.

    Args:
        validation: cases whose Dice chooses the weights and stops the run early.

    Raises:
        InvalidInput: no case, no label, or cases that do not fit the configuration.
        Diverged: the loss is no number.
        Conflict, CorruptFile: the run folder holds another run, or a damaged checkpoint.
    """
    return _train(
        config, build_network(config), cases, validation, run or RunOptions(), on_progress
    )


def finetune(
    weights: Mapping[str, torch.Tensor],
    config: TrainingConfig,
    cases: Sequence[TrainingCase],
    *,
    validation: Sequence[TrainingCase] = (),
    run: RunOptions | None = None,
    on_progress: Callable[[TrainingProgress], None] | None = None,
    source: str = "weights",
) -> TrainedNetwork:
    """Train the network of `config` further, from `weights`; otherwise as `train`.

    Args:
        weights: ``state_dict`` of an `OrganNetwork` of this configuration.
        source: where they came from, for the message.

    Raises:
        InvalidInput: keys are missing, unexpected or of another shape; also as `train`.
    """
    network = build_network(config)
    load_weights(network, dict(weights), source)
    return _train(config, network, cases, validation, run or RunOptions(), on_progress)


def _train(
    config: TrainingConfig,
    network: nn.Module,
    cases: Sequence[TrainingCase],
    validation: Sequence[TrainingCase],
    run: RunOptions,
    on_progress: Callable[[TrainingProgress], None] | None,
) -> TrainedNetwork:
    _check_cases(config, cases)
    if validation:
        _check_cases(config, validation)
    fabric = Fabric(
        accelerator=run.accelerator,
        devices=run.devices,
        num_nodes=run.nodes,
        strategy="ddp" if run.devices * run.nodes > 1 else "auto",
        precision=_PRECISION[config.precision],  # type: ignore[arg-type]
    )
    fabric.launch()
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        return _Training(fabric, config, network, cases, validation, run).go(on_progress)


def _check_cases(config: TrainingConfig, cases: Sequence[TrainingCase]) -> None:
    if not cases:
        raise InvalidInput(
            "no case to train on",
            expected="at least one",
            remedy="import labelled cases, or ask for other datasets or label sources",
        )
    for case in cases:
        if len(case.target) != len(config.organs):
            raise InvalidInput(
                "the case has another number of organs than the model",
                case=case.id or None,
                expected=len(config.organs),
                got=len(case.target),
            )
    if not any(case.labelled.any() for case in cases):
        raise InvalidInput("no case has a label of these organs", expected=", ".join(config.organs))


@dataclass
class _History:
    """The course of a run so far."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    validations: list[Validation] = field(default_factory=list)
    best: tuple[Validation, dict[str, torch.Tensor]] | None = None
    finished: bool = False


class _Training:
    """One run in one process."""

    def __init__(
        self,
        fabric: Fabric,
        config: TrainingConfig,
        network: nn.Module,
        cases: Sequence[TrainingCase],
        validation: Sequence[TrainingCase],
        run: RunOptions,
    ) -> None:
        self._fabric, self._config, self._run = fabric, config, run
        self._validation = validation
        self._network = network.train()
        self._optimiser = _optimiser(config, network)
        self._schedule = _schedule(config, self._optimiser)
        self._wrapped, self._wrapped_optimiser = fabric.setup(network, self._optimiser)
        weights = torch.from_numpy(positive_weights(cases, config.positive_weight_cap))
        self._loss = fabric.to_device(OrganLoss(weights))
        self._sampler = PatchSampler(
            cases,
            config.patch,
            config.seed,
            augment=augmentation(config),
            foreground_share=config.foreground_share,
            short_share=config.short_share,
            padding_hu=config.padding_hu,
        )
        self._key = run_key(
            config, cases, validation, processes=fabric.world_size, data_key=run.data_key
        )
        self._history = _History()

    def go(self, on_progress: Callable[[TrainingProgress], None] | None) -> TrainedNetwork:
        self._resume()
        started, history, steps = time.monotonic(), self._history, self._config.steps
        with self._curves() as curves, contextlib.closing(self._batches()) as batches:
            for batch in batches:
                if history.finished:
                    break
                history.losses.append(self._step(batch))
                history.step += 1
                validated = self._validate_if_due()
                history.finished = history.step == steps or self._no_better()
                if curves is not None:
                    curves.step(history.step, history.losses[-1], self._learning_rate())
                    if validated is not None:
                        curves.validation(validated)
                self._save(curves)
                if on_progress is not None and self._fabric.is_global_zero:
                    on_progress(self._progress(time.monotonic() - started))
        return self._trained(time.monotonic() - started)

    # One step

    def _step(self, batch: Batch) -> float:
        """Take one optimiser step; the loss of the whole batch of all processes."""
        step, config, fabric = self._history.step + 1, self._config, self._fabric
        # Networks with dropout must not depend on where a run was resumed.
        torch.manual_seed(config.seed * 1_000_003 + step)
        hu, target, weight = (
            fabric.to_device(torch.from_numpy(part))
            for part in (batch.hu, batch.target, batch.weight)
        )
        emphasis = max(config.emphasis_floor, 1.0 - step / (EMPHASIS_SHARE * config.steps))
        counted = self._mean(weight.sum())
        logits = self._wrapped(scale_hu(hu, config.hu_window))
        focus = None if batch.focus is None else fabric.to_device(torch.from_numpy(batch.focus))
        loss = self._loss(logits.float(), target, weight, emphasis, counted, focus)
        common = float(self._mean(loss.detach()))
        self._require_number(common, "loss", batch)
        self._wrapped_optimiser.zero_grad(set_to_none=True)
        fabric.backward(loss)
        norm = fabric.clip_gradients(
            self._wrapped, self._wrapped_optimiser, max_norm=GRADIENT_NORM, error_if_nonfinite=False
        )
        # With float16 the scaler skips such steps by itself.
        if norm is not None and config.precision != "float16":
            self._require_number(float(norm), "gradient", batch)
        self._wrapped_optimiser.step()
        if not isinstance(self._schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self._schedule.step()
        return common

    def _mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean over all processes."""
        return cast(torch.Tensor, self._fabric.all_reduce(value, reduce_op="mean"))

    def _require_number(self, value: float, what: str, batch: Batch) -> None:
        if not math.isfinite(value):
            raise Diverged(
                f"the {what} of step {self._history.step + 1} is no number",
                case=", ".join(sorted(set(filter(None, batch.case_ids)))) or None,
                expected="a finite value",
                got=value,
                remedy="train again with a lower learning rate, or look for NaN in these cases",
            )

    def _batches(self) -> Generator[Batch, None, None]:
        """The batches of this process from the next step on, some prepared ahead."""
        size, fabric = self._config.batch_size, self._fabric
        steps = range(self._history.step, self._config.steps)

        def draw(step: int) -> Batch:
            return self._sampler.draw((step * fabric.world_size + fabric.global_rank) * size, size)

        if not self._run.loaders:
            yield from map(draw, steps)
            return
        with ThreadPoolExecutor(self._run.loaders) as pool:
            ahead: deque[Future[Batch]] = deque()
            for step in steps:
                ahead.append(pool.submit(draw, step))
                if len(ahead) > 2 * self._run.loaders:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    # Validation

    def _validate_if_due(self) -> Validation | None:
        """Measure Dice every so often and after the last step; each process on some cases."""
        history, config, fabric = self._history, self._config, self._fabric
        if history.step % config.validate_every and history.step != config.steps:
            return None
        if isinstance(self._schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self._schedule.step(float(np.mean(history.losses[-config.validate_every :])))
        if not self._validation:
            return None
        mine = self._validation[fabric.global_rank :: fabric.world_size]
        self._network.eval()
        sums = dice_sums(self._logits_of, mine, config, fabric.device)
        self._network.train()
        total = fabric.all_reduce(fabric.to_device(torch.from_numpy(sums)), reduce_op="sum")
        dice, cases = cast(torch.Tensor, total).cpu().numpy()
        found = Validation(
            history.step,
            {
                organ: float(dice[channel] / cases[channel])
                for channel, organ in enumerate(config.organs)
                if cases[channel]
            },
        )
        history.validations.append(found)
        if history.best is None or found.mean_dice > history.best[0].mean_dice:
            history.best = (found, _copied(self._network.state_dict()))
        return found

    def _logits_of(self, hu: torch.Tensor) -> torch.Tensor:
        with self._fabric.autocast():
            logits: torch.Tensor = self._network(scale_hu(hu, self._config.hu_window))
        return logits.float()

    def _no_better(self) -> bool:
        """Whether the last validations, as many as the patience, brought nothing better."""
        patience, history = self._config.patience, self._history
        if not patience or history.best is None:
            return False
        since = [v for v in history.validations if v.step > history.best[0].step]
        return len(since) >= patience

    # What is kept

    def _resume(self) -> None:
        """Continue from the checkpoint of the run folder, if there is one."""
        if self._run.folder is None:
            return
        state = read_checkpoint(self._run.folder, self._key)
        if state is None:
            return
        self._network.load_state_dict(state["network"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._schedule.load_state_dict(state["schedule"])
        self._fabric.strategy.precision.load_state_dict(state["precision"])
        best = state["best"]
        self._history = _History(
            state["step"],
            list(state["losses"]),
            [Validation(step, dice) for step, dice in state["validations"]],
            None if best is None else (Validation(*best[0]), best[1]),
            state["finished"],
        )

    def _save(self, curves: Curves | None) -> None:
        """Write checkpoint and curves if it is time."""
        history, run = self._history, self._run
        if run.folder is None or not (history.finished or history.step % run.checkpoint_every == 0):
            return
        if self._fabric.is_global_zero:
            write_checkpoint(run.folder, self._state())
        if curves is not None:
            curves.draw(history.losses, history.validations)
        # No process runs ahead of a checkpoint to which a kill would take all of them back.
        self._fabric.barrier()

    def _state(self) -> dict[str, Any]:
        history = self._history
        best = history.best
        return {
            "run": self._key,
            "step": history.step,
            "network": self._network.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "schedule": self._schedule.state_dict(),
            "precision": self._fabric.strategy.precision.state_dict(),
            "losses": history.losses,
            "validations": [(v.step, dict(v.dice)) for v in history.validations],
            "best": None if best is None else ((best[0].step, dict(best[0].dice)), best[1]),
            "finished": history.finished,
        }

    @contextlib.contextmanager
    def _curves(self) -> Iterator[Curves | None]:
        if self._run.folder is None or not self._fabric.is_global_zero:
            yield None
            return
        with Curves(self._run.folder, self._history.step) as curves:
            yield curves

    def _learning_rate(self) -> float:
        return float(self._optimiser.param_groups[0]["lr"])

    def _progress(self, seconds: float) -> TrainingProgress:
        history = self._history
        dice = history.validations[-1].mean_dice if history.validations else None
        return TrainingProgress(history.step, self._config.steps, history.losses[-1], seconds, dice)

    def _trained(self, seconds: float) -> TrainedNetwork:
        history = self._history
        best = None
        if history.best is not None:
            best, weights = history.best
            self._network.load_state_dict(weights)
        return TrainedNetwork(
            self._network.cpu().eval(),
            tuple(history.losses),
            seconds,
            tuple(history.validations),
            best,
        )


def _copied(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}


def _optimiser(config: TrainingConfig, network: nn.Module) -> torch.optim.Optimizer:
    parameters, rate, decay = network.parameters(), config.learning_rate, config.weight_decay
    match config.optimiser:
        case "adamw":
            return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
        case "adam":
            return torch.optim.Adam(parameters, lr=rate, weight_decay=decay)
        case "sgd":
            return torch.optim.SGD(
                parameters, lr=rate, weight_decay=decay, momentum=SGD_MOMENTUM, nesterov=True
            )


_Schedule = torch.optim.lr_scheduler.LRScheduler


def _schedule(config: TrainingConfig, optimiser: torch.optim.Optimizer) -> _Schedule:
    schedules = torch.optim.lr_scheduler
    match config.schedule:
        case "one_cycle":
            return schedules.OneCycleLR(
                optimiser, config.learning_rate, total_steps=config.steps, pct_start=WARM_UP_SHARE
            )
        case "poly":
            return schedules.PolynomialLR(optimiser, total_iters=config.steps, power=POLY_POWER)
        case "plateau":
            return schedules.ReduceLROnPlateau(
                optimiser, factor=0.5, patience=max(1, config.patience // 2)
            )
        case "constant":
            return schedules.ConstantLR(optimiser, factor=1.0)
