"""What the overlap of sliding windows costs in predictions, and is worth in Dice.

The demo models see nearly a whole body in one window of theirs, so that windows hardly meet. Here
they get windows of half that length, 32 voxels (160 mm), as many as a paper-size ensemble has in a
CT of 1.5 mm; being normalised over less than they were trained on, they are much worse than they
could be, with every overlap. With ``--patch 48`` they are nearly as good as they can be, and have
few windows. Everything else is the attention service's own pipeline, the networks run in PyTorch.

    .venv/bin/python benchmarks/bench_overlap.py [--models FOLDER] [--phantoms N] [--patch N]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from atlas_attention.fusion import SLACK_SHARE, available_threads
from atlas_attention.scoring import plan_windows
from atlas_core.model_spec import ModelSpec
from atlas_core.phantoms import Phantom
from atlas_embedded.settings import EmbeddedSettings
from atlas_models.demo import held_out
from atlas_models.evaluation.phantom_evaluation import ArraySource, dice_by_organ, predict
from atlas_models.serving import exported_models, read_spec
from bench.measurement import machine, report, say
from numpy.typing import NDArray

OVERLAPS = (0.0, 0.25, 0.375, 0.4375, 0.5, 0.625, 0.75)

SWIN_MULTIPLE = 32
"""A Swin UNETR takes windows of multiples of this many voxels only."""


class TorchPredictor:
    """Networks of exported models as the pipeline's `Predictor`, for windows of `patch` voxels."""

    def __init__(self, folders: Sequence[Path], patch: int) -> None:
        import torch
        from atlas_models.exporting import load_network, wrap_network

        torch.set_num_threads(available_threads())
        self._torch = torch
        self._networks = {}
        for folder in folders:
            spec = read_spec(folder).model_copy(update={"patch": (patch,) * 3})
            if patch % SWIN_MULTIPLE == 0 or spec.architecture != "swin_unetr":
                self._networks[spec] = wrap_network(*load_network(folder)).eval()
        self.specs = tuple(self._networks)

    def submit(self, spec: ModelSpec, window: NDArray[np.float32]) -> Future[NDArray[np.uint8]]:
        answer: Future[NDArray[np.uint8]] = Future()
        with self._torch.inference_mode():
            soft = self._networks[spec](self._torch.from_numpy(window)[None, None])
        answer.set_result(soft[0].numpy())
        return answer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, default=EmbeddedSettings().models_dir)
    parser.add_argument("--phantoms", type=int, default=12, help="held out, of the ordinary kind")
    parser.add_argument("--patch", type=int, default=32, help="voxels along each axis of a window")
    options = parser.parse_args()
    described = machine("torch", "monai")
    predictor = TorchPredictor(exported_models(options.models), options.patch)
    cases: dict[float, list[tuple[float, int, float]]] = {overlap: [] for overlap in OVERLAPS}
    for number, phantom in enumerate(held_out(options.phantoms, 0), start=1):
        say(f"phantom {number} of {options.phantoms}")
        for overlap in OVERLAPS:
            cases[overlap].append(_case(phantom, predictor, overlap))
    report(
        "overlap",
        overlaps={str(overlap): _summary(cases[overlap], cases[0.5]) for overlap in OVERLAPS},
        inputs={
            "phantoms": options.phantoms,
            "models": [spec.architecture for spec in predictor.specs],
            "patch": options.patch,
            "slack_share": SLACK_SHARE,
        },
        machine=described,
    )


def _case(phantom: Phantom, predictor: TorchPredictor, overlap: float) -> tuple[float, int, float]:
    """Mean Dice of the ensemble's pseudo label, predictions, attention size in millilitres."""
    source, specs = ArraySource(phantom.ct, phantom.geometry), predictor.specs
    prediction = predict(source, specs, predictor, overlap)
    dice = dice_by_organ(prediction.label, phantom.truth, specs[0].organs)
    return (
        statistics.mean(value for value in dice.values() if value is not None),
        len(plan_windows(source, specs, overlap)) * len(specs),
        prediction.attention_ml,
    )


def _summary(
    cases: Sequence[tuple[float, int, float]], half: Sequence[tuple[float, int, float]]
) -> dict[str, Any]:
    """Means over the phantoms; `half`: the same phantoms with an overlap of one half."""
    against = [dice - other for (dice, *_), (other, *_) in zip(cases, half, strict=True)]
    return {
        "mean_dice": round(statistics.mean(dice for dice, *_ in cases), 4),
        "dice_against_half": round(statistics.mean(against), 4),
        "worst_against_half": round(min(against), 4),
        "predictions": round(statistics.mean(windows for _, windows, _ in cases), 1),
        "attention_ml": round(statistics.mean(ml for *_, ml in cases), 1),
    }


if __name__ == "__main__":
    main()
