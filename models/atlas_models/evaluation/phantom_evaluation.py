"""How good exported models are on phantoms: Dice and attention, exactly as in service.

Runs the attention service's own pipeline with ONNX Runtime in this process. Free of torch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import onnxruntime
from atlas_attention.fusion import DEFAULT_OVERLAP
from atlas_attention.scoring import Predictor, attend
from atlas_core.geometry import VolumeGeometry
from atlas_core.model_spec import INPUT_NAME, OUTPUT_NAME, ModelSpec
from atlas_core.organs import OrganScheme
from atlas_core.overlap import dice
from atlas_core.phantoms import PHANTOM_ORGANS, Kind, Phantom
from atlas_core.records import OrganScore, Reading
from numpy.typing import NDArray

from atlas_models.serving import GRAPH_FILE, read_spec


class LocalPredictor:
    """Runs windows through exported models by ONNX Runtime, as the pipeline's `Predictor`.

    Args:
        folders: of exported models.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        self._sessions: dict[ModelSpec, onnxruntime.InferenceSession] = {}
        for folder in folders:
            self._sessions[read_spec(folder)] = onnxruntime.InferenceSession(
                folder / GRAPH_FILE, options, providers=["CPUExecutionProvider"]
            )
        # One window at a time: a session uses every core by itself.
        self._pool = ThreadPoolExecutor(1)
        self._answers: dict[tuple[ModelSpec, bytes], NDArray[np.uint8]] = {}

    @property
    def specs(self) -> tuple[ModelSpec, ...]:
        return tuple(self._sessions)

    def submit(self, spec: ModelSpec, window: NDArray[np.float32]) -> Future[NDArray[np.uint8]]:
        return self._pool.submit(self._run, spec, window)

    def clear_cache(self) -> None:
        """Drop the cached predictions; to be called between cases."""
        self._answers.clear()

    def _run(self, spec: ModelSpec, window: NDArray[np.float32]) -> NDArray[np.uint8]:
        # Each model predicts a case by itself and within the ensemble: the same windows twice.
        key = (spec, hashlib.sha256(window.tobytes()).digest())
        if key not in self._answers:
            (soft,) = self._sessions[spec].run([OUTPUT_NAME], {INPUT_NAME: window[None, None]})
            self._answers[key] = np.asarray(soft[0], dtype=np.uint8)
        return self._answers[key]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class ArraySource:
    """A CT in memory as the attention pipeline reads it; voxels ``[i, j, k]`` in file order."""

    voxels: NDArray[np.int16] | NDArray[np.float32]
    geometry: VolumeGeometry

    @property
    def canonical(self) -> VolumeGeometry:
        return self.geometry.canonical()

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Canonical slices ``[start, stop)``: HU ``[z, y, x]``."""
        canonical = self.geometry.axis_map.to_canonical(self.voxels)
        return np.ascontiguousarray(
            canonical[:, :, start:stop].transpose(2, 1, 0), dtype=np.float32
        )


@dataclass(frozen=True)
class EnsemblePrediction:
    """What an ensemble predicts of one CT.

    Attributes:
        label: label ids on the CT's own grid, uint8 ``[i, j, k]``.
        attention: organ → its map on that grid, in units of `ATTENTION_SCALE`; none unless wanted.
        organs: the size of each organ's attention, its disagreement and the like.
    """

    label: NDArray[np.uint8]
    attention: Mapping[str, NDArray[np.uint8]]
    organs: tuple[OrganScore, ...]

    @property
    def attention_ml(self) -> float:
        """Sum of Eq. 4 over voxels and organs, in millilitres."""
        return sum(organ.attention_ml for organ in self.organs)


def predict(
    source: ArraySource,
    specs: Sequence[ModelSpec],
    predictor: Predictor,
    overlap: float = DEFAULT_OVERLAP,
    *,
    reading: Reading = Reading.PAPER,
    maps: bool = False,
) -> EnsemblePrediction:
    """Pseudo label and attention of one CT, as the attention service computes them.

    Args:
        reading: how soft predictions become attention.
        maps: keep the attention maps, too: a volume for each organ.
    """
    run = attend(source, specs, predictor, reading, scheme=PHANTOM_ORGANS, overlap=overlap)
    label = np.zeros(source.geometry.shape, dtype=np.uint8, order="F")
    attention: list[NDArray[np.uint8]] = []
    for slab in run:
        where = [slice(None)] * 3
        where[slab.axis] = slice(slab.start, slab.stop)
        label[tuple(where)] = slab.label
        if maps:
            attention = attention or [np.zeros_like(label) for _ in slab.attention]
            for volume, part in zip(attention, slab.attention, strict=True):
                volume[tuple(where)] = part
    organs = tuple(run.summary.organs)
    names = [organ.organ for organ in organs] if maps else []
    return EnsemblePrediction(label, dict(zip(names, attention, strict=True)), organs)


def dice_by_organ(
    label: NDArray[np.uint8],
    truth: NDArray[np.uint8],
    organs: Iterable[str],
    scheme: OrganScheme = PHANTOM_ORGANS,
) -> dict[str, float | None]:
    """Dice coefficient of each organ; None where it is in neither label map.

    >>> dice_by_organ(np.array([1, 1, 0], np.uint8), np.array([1, 0, 0], np.uint8), ["aorta"])
    {'aorta': 0.6666666666666666}
    """
    return {
        organ: dice(label == scheme[organ].label, truth == scheme[organ].label) for organ in organs
    }


@dataclass(frozen=True)
class PhantomResult:
    """Dice and attention of one phantom, for each model and for the ensemble."""

    kind: Kind
    dice: Mapping[str, Mapping[str, float | None]]
    attention_ml: float


ENSEMBLE = "ensemble"


def evaluate_phantom(phantom: Phantom, predictor: LocalPredictor) -> PhantomResult:
    """Dice of every model and of the ensemble on one phantom, and the ensemble's attention size."""
    source = ArraySource(phantom.ct, phantom.geometry)
    organs = predictor.specs[0].organs
    predictor.clear_cache()
    dice = {}
    for spec in predictor.specs:
        single = predict(source, [spec], predictor)
        dice[spec.name] = dice_by_organ(single.label, phantom.truth, organs)
    ensemble = predict(source, predictor.specs, predictor)
    dice[ENSEMBLE] = dice_by_organ(ensemble.label, phantom.truth, organs)
    return PhantomResult(phantom.kind, dice, ensemble.attention_ml)


def summarise(results: Sequence[PhantomResult]) -> dict[str, object]:
    """Mean Dice per model and organ, and mean attention size, over `results`."""
    summary: dict[str, object] = {"cases": len(results)}
    for model in results[0].dice:
        by_organ = {
            organ: _mean([result.dice[model][organ] for result in results])
            for organ in results[0].dice[model]
        }
        summary[model] = {"mean_dice": _mean(list(by_organ.values())), "dice": by_organ}
    summary["attention_ml"] = _mean([result.attention_ml for result in results])
    return summary


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(float(np.mean(known)), 4) if known else None
