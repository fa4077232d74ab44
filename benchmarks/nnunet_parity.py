"""Labels of an imported nnU-Net, as we serve it, against nnU-Net's own predictor: one JSON line.

    python benchmarks/nnunet_parity.py --plan anisotropic --ct CT.nii.gz --mirrored

The nnU-Net is one of those that come with this repository, trained by nnU-Net itself on phantoms,
or a site's own (``--result``). Both sides start from the same file: nnU-Net's
`predict_from_files`, and our pipeline with ONNX Runtime in place of Triton. Reported are Dice by
organ between the two, and the seconds of each, for every way to resample.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from atlas_core.imaging import read_label, read_volume, write_volume
from atlas_core.phantoms import PHANTOM_ORGANS, PhantomGrid, make_phantom
from atlas_flows.demos.phantom_nnunet import PLANS, kept_results
from atlas_models.evaluation.phantom_evaluation import (
    ArraySource,
    LocalPredictor,
    dice_by_organ,
    predict,
)
from atlas_models.importing import NnunetChoices, import_nnunet

NNUNET_OVERLAP = 0.5
CERTAIN_VOXELS = 200
"""An organ of fewer voxels on either side is reported, not judged: a voxel is a percent of it."""


def theirs(result: Path, ct: Path, folder: Path, mirrored: bool) -> np.ndarray:
    """Label map of nnU-Net's own predictor on the CT's grid."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        tile_step_size=NNUNET_OVERLAP, use_mirroring=mirrored, device=torch.device("cpu"),
        verbose=False, allow_tqdm=False,
    )  # fmt: skip
    predictor.initialize_from_trained_model_folder(str(result), ("all",), "checkpoint_final.pth")
    predictor.allowed_mirroring_axes = (0, 1, 2)
    predictor.predict_from_files(
        [[str(ct)]], [str(folder / "theirs.nii.gz")], num_processes_preprocessing=1,
        num_processes_segmentation_export=1,
    )  # fmt: skip
    return np.asarray(read_label(folder / "theirs.nii.gz").voxels)


def ours(result: Path, ct: Path, folder: Path, serving: dict[str, Any]) -> tuple[np.ndarray, float]:
    """Label map of our pipeline on the CT's grid, and its seconds."""
    choices = NnunetChoices(name="parity", orientation="RAS", serving=serving)
    target = folder / f"model-{'-'.join(sorted(serving)) or 'plain'}"
    import_nnunet(result, target, choices, PHANTOM_ORGANS)
    volume = read_volume(ct)
    with LocalPredictor([target]) as predictor:
        begun = time.perf_counter()
        source = ArraySource(volume.voxels, volume.geometry)
        label = predict(source, predictor.specs, predictor, NNUNET_OVERLAP).label
        return label, time.perf_counter() - begun


def allow_mirrors(result: Path, folder: Path) -> Path:
    """The result with a checkpoint that says its training was mirrored, as most are."""
    copy = folder / "result"
    shutil.copytree(result, copy)
    path = copy / "fold_all" / "checkpoint_final.pth"
    content = torch.load(path, map_location="cpu", weights_only=False)
    content["inference_allowed_mirroring_axes"] = (0, 1, 2)
    torch.save(content, path)
    return copy


def compare(result: Path, ct: Path, folder: Path, mirrored: bool) -> dict[str, Any]:
    """Dice between the two sides for every way to serve the member."""
    begun = time.perf_counter()
    reference = theirs(result, ct, folder, mirrored)
    seconds = time.perf_counter() - begun
    ways: dict[str, dict[str, Any]] = {
        "linear": {},
        "nnunet": {"resampling": "nnunet"},
    }
    told: dict[str, Any] = {"mirrored": mirrored, "nnunet_s": round(seconds, 2)}
    for way, serving in ways.items():
        if mirrored:
            serving = serving | {"mirrored": True}
        label, took = ours(result, ct, folder, serving)
        dice = dice_by_organ(label, reference, PHANTOM_ORGANS.names)
        judged = {
            organ: value
            for organ, value in dice.items()
            if value is not None
            and (reference == PHANTOM_ORGANS[organ].label).sum() >= CERTAIN_VOXELS
        }
        told[way] = {
            "seconds": round(took, 2),
            "least_dice": round(min(judged.values()), 4) if judged else None,
            "dice": {organ: None if v is None else round(v, 4) for organ, v in dice.items()},
        }
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", choices=PLANS, default="fine")
    parser.add_argument("--result", type=Path, help="An nnU-Net; default: the demo's of this plan.")
    parser.add_argument("--ct", type=Path, help="NIfTI file; default: a phantom.")
    parser.add_argument("--mirrored", action="store_true")
    given = parser.parse_args()
    result = given.result or kept_results()[given.plan]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        ct = folder / "ct_0000.nii.gz"
        if given.ct is None:
            phantom = make_phantom(900, grid=PhantomGrid(columns=96, axis_codes="RAS"))
            write_volume(ct, phantom.ct, phantom.geometry)
        else:
            volume = read_volume(given.ct)
            canonical = volume.geometry.axis_map.to_canonical(volume.voxels)
            write_volume(ct, canonical, volume.geometry.canonical())
        told = compare(allow_mirrors(result, folder), ct, folder, given.mirrored)
    print(json.dumps({"benchmark": "nnunet_parity", "plan": given.plan, **told}))


if __name__ == "__main__":
    main()
