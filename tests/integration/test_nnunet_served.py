"""A trained nnU-Net through a real Triton says what nnU-Net's own predictor says, voxel by voxel.

`make nnunet-parity` does the same on CTs of one's own, mirrored and not.
"""

from __future__ import annotations

from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from atlas_attention.scoring import pipeline
from atlas_attention.triton import TritonOptions, TritonPredictor
from atlas_core.imaging import write_volume
from atlas_core.imaging.resampling import resample_image
from atlas_core.phantoms import PHANTOM_ORGANS, PhantomGrid, make_phantom
from atlas_embedded.triton_environment import TritonEnvironment
from atlas_flows.demos import kept_results
from atlas_flows.demos.phantom_nnunet import HELD_OUT, NNUNET_OVERLAP, PLANS, nnunets_own
from atlas_models.evaluation.phantom_evaluation import ArraySource, dice_by_organ, predict
from atlas_models.importing import NnunetChoices, import_nnunet
from triton_server import TritonServer, install

predict_from_raw_data = pytest.importorskip(
    "nnunetv2.inference.predict_from_raw_data", reason="nnU-Net is not installed"
)
pytestmark = pytest.mark.slow


@lru_cache  # as nnU-Net's own is, whose cache it clears
def centred_gaussian(
    tile_size: tuple[int, ...],
    sigma_scale: float = 0.125,
    value_scaling_factor: float = 1,
    **_: Any,
) -> torch.Tensor:
    """nnU-Net's weights of a window, about its middle: its own are about voxel n // 2, half a voxel
    beside it, which shows where a window of 8 slices has a Gaussian of one."""
    weights = torch.ones((), dtype=torch.float64)
    for length in tile_size:
        offset = torch.arange(length, dtype=torch.float64) - (length - 1) / 2
        weights = weights[..., None] * torch.exp(-0.5 * (offset / (sigma_scale * length)) ** 2)
    halved = (weights * value_scaling_factor).half()
    return halved.clamp(min=float(halved[halved > 0].min()))


CERTAIN_VOXELS = 200
"""Of a smaller organ a voxel is a percent or more."""


def test_triton_labels_what_nnunet_labels(
    triton_environment: TritonEnvironment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same windows of the same weights, where neither has anything to resample: on a CT of
    the network's own spacing, all of it looked at. What is left is that nnU-Net blends logits."""
    monkeypatch.setattr(pipeline, "body_box", lambda *_: None)
    monkeypatch.setattr(predict_from_raw_data, "compute_gaussian", centred_gaussian)
    phantom = make_phantom(HELD_OUT, grid=PhantomGrid(columns=96, axis_codes="RAS"))
    plans = list(kept_results())
    for plan, result in kept_results().items():
        choices = NnunetChoices(name=plan, orientation="RAS", serving={"resampling": "nnunet"})
        import_nnunet(result, tmp_path / plan, choices, PHANTOM_ORGANS)
    install(tmp_path / "repository", [tmp_path / plan for plan in plans])
    server = TritonServer(triton_environment, tmp_path / "repository", tmp_path / "triton.log")
    server.start(plans)
    try:
        with closing(TritonPredictor(TritonOptions(server.address))) as predictor:
            for plan, result in kept_results().items():
                specs = predictor.ensemble([plan])
                grid = phantom.geometry.resampled(specs[0].spacing_mm)
                ct = np.rint(resample_image(phantom.ct, phantom.geometry, grid)).astype(np.int16)
                write_volume(tmp_path / "ct_0000.nii.gz", ct, grid)
                expected = nnunets_own(result, tmp_path / "ct_0000.nii.gz", above_half=True)
                found = predict(ArraySource(ct, grid), specs, predictor, NNUNET_OVERLAP).label
                judged = [
                    organ
                    for organ in PLANS[plan].organs
                    if (expected == PHANTOM_ORGANS[organ].label).sum() >= CERTAIN_VOXELS
                ]
                dice = dice_by_organ(found, expected, judged)
                assert (
                    "liver" in judged
                )  # it has learnt something, so that agreement means something
                assert min(value or 0.0 for value in dice.values()) >= 0.99, (plan, dice)
    finally:
        server.stop()
