"""The networks of the study: trained by the product's training, predicted by its pipeline."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from atlas_attention.scoring import attend
from atlas_core.atomic_writes import replace_file
from atlas_core.model_spec import ModelSpec
from atlas_core.phantoms import PHANTOM_ORGANS
from atlas_core.ranking import CaseSizes, rank
from atlas_core.records import RankedCase, Reading
from atlas_models.config import TrainingConfig
from atlas_models.evaluation.phantom_evaluation import ArraySource
from atlas_models.exporting import spec_of
from atlas_models.networks import build_network
from atlas_models.training import RunOptions, TrainingCase, finetune, train
from atlas_models.training.network_training import scale_hu
from numpy.typing import NDArray
from study.cases import StudyCase
from torch import nn

Weights = dict[str, torch.Tensor]

CHECKPOINT_EVERY = 25
"""Steps."""


@dataclass(frozen=True)
class Scored:
    """What an ensemble makes of a case.

    Attributes:
        label: pseudo label, ids ``[x, y, z]``.
        attention: organ → bytes of its map.
        ranked: the case as a row of the priority list.
    """

    label: NDArray[np.uint8]
    attention: Mapping[str, NDArray[np.uint8]]
    ranked: RankedCase


class Ensemble:
    """Networks in memory, as the attention pipeline's `Predictor`."""

    def __init__(self, members: Mapping[str, tuple[TrainingConfig, Weights]]) -> None:
        self._networks: dict[ModelSpec, nn.Module] = {}
        for config, weights in members.values():
            network = build_network(config)
            network.load_state_dict(weights)
            self._networks[spec_of(config)] = network.eval()

    def submit(self, spec: ModelSpec, window: NDArray[np.float32]) -> Future[NDArray[np.uint8]]:
        answer: Future[NDArray[np.uint8]] = Future()
        with torch.inference_mode():
            hu = torch.from_numpy(np.array(window))[None, None]
            logits = self._networks[spec](scale_hu(hu, spec.hu_window))
            soft = torch.sigmoid(logits[0].float())
        answer.set_result((soft * 255).round().to(torch.uint8).numpy())
        return answer

    def score(self, case: StudyCase) -> Scored:
        """Pseudo label, attention and place of one case, by the service's own pipeline."""
        run = attend(
            ArraySource(case.ct, case.geometry), tuple(self._networks), self,
            reading=Reading.PAPER, scheme=PHANTOM_ORGANS,
        )  # fmt: skip
        label = np.zeros(case.ct.shape, np.uint8)
        names = next(iter(self._networks)).organs
        attention = {organ: np.zeros(case.ct.shape, np.uint8) for organ in names}
        for slab in run:
            where = [slice(None)] * 3
            where[slab.axis] = slice(slab.start, slab.stop)
            label[tuple(where)] = slab.label
            for organ, part in zip(names, slab.attention, strict=True):
                attention[organ][tuple(where)] = part
        (ranked,) = rank([CaseSizes(case.id, "pool", tuple(run.summary.organs))])
        return Scored(label, attention, ranked)

    def score_all(self, cases: Sequence[StudyCase]) -> dict[str, Scored]:
        return {case.id: self.score(case) for case in cases}


def trained(
    config: TrainingConfig,
    cases: Sequence[TrainingCase],
    path: Path,
    start: Weights | None = None,
    data_key: str = "",
) -> Weights:
    """Weights in `path`, trained if they are not there; a run that was killed resumes.

    Args:
        start: fine-tune from these; None: from scratch.
        data_key: tells runs on other labels of the same cases apart.
    """
    if path.is_file():
        weights: Weights = torch.load(path, weights_only=True)
        return weights
    # A run of fewer steps than lie between checkpoints would begin again anyway.
    folder = path.with_suffix(".run") if config.steps > CHECKPOINT_EVERY else None
    run = RunOptions(folder, CHECKPOINT_EVERY, data_key, accelerator="cpu")
    path.parent.mkdir(parents=True, exist_ok=True)
    made = (
        train(config, cases, run=run) if start is None else finetune(start, config, cases, run=run)
    )
    data = io.BytesIO()
    torch.save(made.weights(), data)
    replace_file(path, data.getbuffer())
    return dict(made.weights())
