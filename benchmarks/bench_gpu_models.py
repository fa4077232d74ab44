"""What the paper's networks cost on a GPU: memory and seconds, serving and training.

Serving is torch in float16 over windows that lie in the card's memory, four at a time, up to the
bytes of the soft predictions: what NVIDIA's Triton makes of the same graph by TensorRT is another
runtime's figure. Training is the product's own, batches prepared meanwhile; a step's time is the
median of the later ones.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from atlas_attention.fusion import DEFAULT_OVERLAP
from atlas_attention.scoring import plan_windows
from atlas_core.imaging import open_slabs, write_volume
from atlas_core.model_spec import ModelSpec
from atlas_core.phantoms import PHANTOM_ORGANS, make_phantom
from atlas_models.config import TrainingConfig, read_config, shipped_configs
from atlas_models.exporting import wrap_network
from atlas_models.networks import build_network
from atlas_models.training import RunOptions, TrainingCase, TrainingProgress, phantom_case, train
from bench.inputs import describe, full_size_ct
from bench.measurement import GIB, machine, report, say, timed
from torch import nn

BATCH = 4
"""Windows, and patches, at once: the paper's batch for one GPU."""

RUNS = 10
STEPS, SETTLED_STEPS = 24, 8
LOADERS = 8
CASES = 4


def serving(network: nn.Module, config: TrainingConfig) -> dict[str, float]:
    """Seconds for a window, and the card's memory meanwhile."""
    served = wrap_network(network, config).eval().cuda().half()
    z, y, x = reversed(config.patch)
    windows = torch.randn(BATCH, 1, z, y, x, device="cuda").mul_(150).half()

    def work() -> None:
        with torch.inference_mode():
            served(windows)
        torch.cuda.synchronize()

    torch.cuda.reset_peak_memory_stats()
    median = timed(work, RUNS, warm_up=3).median
    return {"window_s": median / BATCH, "gib": torch.cuda.max_memory_allocated() / GIB}


def training(config: TrainingConfig, cases: list[TrainingCase]) -> dict[str, float]:
    """Seconds for a step of the paper's batch, and the card's memory meanwhile."""
    moments: list[float] = []

    def on_progress(progress: TrainingProgress) -> None:
        moments.append(time.perf_counter())

    torch.cuda.reset_peak_memory_stats()
    short = config.model_copy(update={"steps": STEPS})
    trained = train(
        short, cases, run=RunOptions(accelerator="cuda", loaders=LOADERS), on_progress=on_progress
    )
    return {
        "step_s": statistics.median(np.diff(moments)[SETTLED_STEPS:]),
        "gib": torch.cuda.max_memory_allocated() / GIB,
        "first_loss": trained.losses[0],
        "last_loss": trained.losses[-1],
    }


def windows_of_a_ct(config: TrainingConfig) -> tuple[int, dict[str, object]]:
    """Windows that a full-size CT is laid out in, and what CT that is."""
    ct = full_size_ct(200)
    spec = ModelSpec(
        name=config.name, version=0, architecture=config.architecture, organs=config.organs,
        spacing_mm=config.spacing_mm, patch=config.patch, hu_window=config.hu_window,
        sha256="0" * 64,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ct.nii.gz"
        write_volume(path, ct.voxels, ct.geometry)
        with open_slabs(path) as slabs:
            return len(plan_windows(slabs, [spec], DEFAULT_OVERLAP)), describe(ct)


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("bench_gpu_models measures a GPU: torch sees none")
    names = [name for name in shipped_configs() if name.startswith("paper/")]
    configs = {
        name.removeprefix("paper/"): read_config(name).of_atlas(PHANTOM_ORGANS) for name in names
    }
    one = next(iter(configs.values()))
    windows, ct = windows_of_a_ct(one)
    cases = [phantom_case(make_phantom(seed), one) for seed in range(CASES)]
    results: dict[str, Any] = {}
    for name, config in configs.items():
        say(f"{name}: serving")
        network = build_network(config)
        parameters = sum(weights.numel() for weights in network.parameters())
        served = serving(network, config)
        del network  # its place on the card is the training's
        torch.cuda.empty_cache()
        say(f"{name}: training")
        results[name] = {
            "parameters": parameters,
            "serving": {key: round(value, 5) for key, value in served.items()},
            "volumes_per_hour": round(3600 / (windows * served["window_s"])),
            "training": {key: round(v, 4) for key, v in training(config, cases).items()},
        }
        torch.cuda.empty_cache()
    ensemble = sum(results[n]["serving"]["window_s"] for n in ("swin_unetr", "nnunet", "unet"))
    report(
        "gpu_models",
        ensemble_volumes_per_hour=round(3600 / (windows * ensemble)),
        windows=windows,
        ct=ct,
        networks=results,
        gpu=torch.cuda.get_device_name(),
        machine=machine("numpy", "monai", "torch"),
    )


if __name__ == "__main__":
    main()
