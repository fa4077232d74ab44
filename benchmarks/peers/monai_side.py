"""The usual way to an attention map, with the field's own parts: MONAI and NumPy.

Sliding windows by `monai.inferers.sliding_window_inference`, the networks in PyTorch; soft
predictions of every class back on the CT's grid as float32 (what MONAI's `Invertd` does before
predictions are saved); then Eq. 1–4 and the mean pseudo label in NumPy. Generous to this side: the
CT is read and brought to the models' grid by Atlas Loop's own fast code, nothing is written to disk
in between, and NumPy works organ by organ, so that its temporaries stay small.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from atlas_core.imaging import read_volume
from atlas_core.imaging.resampling import resample_image
from atlas_core.model_spec import ModelSpec
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_models.serving import read_spec
from bench.measurement import say
from numpy.typing import NDArray

AIR_HU = -1024.0

SIGMA_SHARE = 0.125
"""Of the Gaussian importance: MONAI's default, and the attention service's."""


@dataclass(frozen=True)
class MonaiRun:
    """One run over one CT.

    Attributes:
        seconds: of every stage.
        predictions: windows times models; MONAI slides over the whole grid.
        attention_ml: attention size by organ.
        label: file of the pseudo label, uint8 ``[i, j, k]`` in the CT file's axis order.
    """

    seconds: dict[str, float]
    predictions: int
    attention_ml: dict[str, float]
    label: Path

    @property
    def total_s(self) -> float:
        return sum(self.seconds.values())


def run_monai(
    ct_path: Path, model_folders: Sequence[Path], overlap: float, output: Path, runs: int
) -> list[MonaiRun]:
    """`runs` runs, one after the other; networks are loaded, proved and warmed up before."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    specs = [read_spec(folder) for folder in model_folders]
    networks = [_network(folder) for folder in model_folders]
    return [_run(ct_path, specs, networks, overlap, output) for _ in range(runs)]


def _network(folder: Path) -> Any:
    """The network of an exported model in PyTorch, proved to compute what the graph computes."""
    from atlas_models.exported_network import ExportedNetwork
    from atlas_models.exporting import load_network, measure_parity

    network, config = load_network(folder)
    window = np.random.default_rng(0).normal(0, 150, config.patch[::-1]).astype(np.float32)
    parity = measure_parity(network, config, folder, [window])
    say(f"{folder.name}: PyTorch and the graph differ by at most {parity.probability:.1e}")
    return ExportedNetwork(network, config.hu_window).eval()


def _run(
    ct_path: Path, specs: Sequence[ModelSpec], networks: Sequence[Any], overlap: float, output: Path
) -> MonaiRun:
    seconds: dict[str, float] = {}
    with _stage(seconds, "read"):
        ct = read_volume(ct_path)
        grid = ct.geometry.canonical().resampled(specs[0].spacing_mm)
        coarse = resample_image(ct.voxels, ct.geometry, grid).transpose(2, 1, 0)
        x, y, z = ct.geometry.canonical().shape
    soft = np.empty((len(specs), len(specs[0].organs), z, y, x), np.float32)
    predictions = 0
    for at, (spec, network) in enumerate(zip(specs, networks, strict=True)):
        with _stage(seconds, "predict"):
            prediction, windows = _predict(coarse, spec, network, overlap)
            predictions += windows
        with _stage(seconds, "resample"):
            _to_grid(prediction, soft[at])
    with _stage(seconds, "fuse"):
        attention = attention_of(soft)
        label = pseudo_label(soft, specs[0])
    voxel_ml = ct.geometry.voxel_ml
    sizes = {
        organ: float(attention[at].sum(dtype=np.float64)) * voxel_ml
        for at, organ in enumerate(specs[0].organs)
    }
    # Two of three axes of a scanner's file run against RAS+; turned outside of what is timed.
    np.save(output, ct.geometry.axis_map.from_canonical(label.transpose(2, 1, 0)))
    return MonaiRun({name: round(s, 3) for name, s in seconds.items()}, predictions, sizes, output)


def _predict(
    coarse: NDArray[np.float32], spec: ModelSpec, network: Any, overlap: float
) -> tuple[Any, int]:
    """Soft prediction float32 ``[1, organ, z, y, x]`` on the models' grid, and its windows."""
    import torch
    from monai.inferers import sliding_window_inference

    windows = 0

    def predictor(window: Any) -> Any:
        nonlocal windows
        windows += 1
        return network.probabilities(window)

    with torch.inference_mode():
        prediction = sliding_window_inference(
            torch.from_numpy(np.ascontiguousarray(coarse))[None, None],
            roi_size=spec.patch[::-1],
            sw_batch_size=1,
            predictor=predictor,
            overlap=overlap,
            mode="gaussian",
            sigma_scale=SIGMA_SHARE,
            cval=AIR_HU,
        )
    return prediction, windows


def _to_grid(prediction: Any, soft: NDArray[np.float32]) -> None:
    """Trilinear, box edges aligned, one class at a time, into `soft` ``[organ, z, y, x]``."""
    import torch

    for organ, target in enumerate(soft):
        fine = torch.nn.functional.interpolate(
            prediction[:, organ : organ + 1], size=target.shape, mode="trilinear"
        )
        np.copyto(target, fine[0, 0].numpy())


def attention_of(soft: NDArray[np.float32]) -> NDArray[np.float32]:
    """Eq. 4 of `soft` ``[model, organ, z, y, x]``: float32 ``[organ, z, y, x]``."""
    organs = range(soft.shape[1])
    claimed = [(soft[:, organ] > 0.5).any(axis=0) for organ in organs]
    contested = np.add.reduce(claimed, dtype=np.uint8) > 1
    attention = np.empty(soft.shape[1:], np.float32)
    for organ in organs:
        p = soft[:, organ]
        attention[organ] = p.std(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            attention[organ] -= np.nan_to_num(p * np.log(p), copy=False).mean(axis=0)
        attention[organ] += claimed[organ] & contested
    return attention


def pseudo_label(soft: NDArray[np.float32], spec: ModelSpec) -> NDArray[np.uint8]:
    """Label of the largest mean above one half, else 0: uint8 ``[z, y, x]``."""
    best = np.full(soft.shape[2:], 0.5, np.float32)
    label = np.zeros(soft.shape[2:], np.uint8)
    for organ, value in enumerate(ABDOMEN_ATLAS.select(list(spec.organs)).labels):
        mean = soft[:, organ].mean(axis=0)
        larger = mean > best
        label[larger] = value
        np.maximum(best, mean, out=best)
    return label


@contextmanager
def _stage(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began
