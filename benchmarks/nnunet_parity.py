"""Labels of an imported nnU-Net, as Triton serves it, against nnU-Net's own predictor: JSON.

    python benchmarks/nnunet_parity.py --ct CT.nii.gz

The nnU-Nets are those that come with this repository, trained by nnU-Net itself on phantoms, or a
site's own (``--result``). Both sides start from the same file: nnU-Net's `predict_from_files`, and
our pipeline with a real Triton. Reported are Dice by organ between the two and the seconds of each,
without mirroring and with it, for every way to resample.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from atlas_attention.triton import TritonOptions, TritonPredictor
from atlas_core.imaging import read_label, read_volume, write_volume
from atlas_core.phantoms import PHANTOM_ORGANS, PhantomGrid, make_phantom
from atlas_flows.demos import kept_results
from atlas_models.evaluation.phantom_evaluation import ArraySource, dice_by_organ, predict
from atlas_models.importing import NnunetChoices, import_nnunet
from atlas_models.serving import CpuServing, TritonRepository
from measurement import machine, report, say
from serving import bare_triton

NNUNET_OVERLAP = 0.5
CERTAIN_VOXELS = 200
"""An organ of fewer voxels is reported, not judged: a voxel is a percent of it."""

WAYS: dict[str, dict[str, Any]] = {
    "linear": {},
    "nnunet": {"resampling": "nnunet"},
    "mirrored_linear": {"mirrored": True},
    "mirrored_nnunet": {"mirrored": True, "resampling": "nnunet"},
}
"""Name → how the member is served."""


def theirs(result: Path, ct: Path, folder: Path, mirrored: bool) -> np.ndarray:
    """Label map of nnU-Net's own predictor on the CT's grid."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        tile_step_size=NNUNET_OVERLAP, use_mirroring=mirrored, device=torch.device("cpu"),
        verbose=False, allow_tqdm=False,
    )  # fmt: skip
    predictor.initialize_from_trained_model_folder(str(result), ("all",), "checkpoint_final.pth")
    predictor.predict_from_files_sequential(
        [[str(ct)]], [str(folder / "theirs.nii.gz")]
    )  # fmt: skip
    return np.asarray(read_label(folder / "theirs.nii.gz").voxels)


def allow_mirrors(result: Path, folder: Path) -> Path:
    """The result with a checkpoint that says its training was mirrored, as most are."""
    copy = folder / "result"
    shutil.copytree(result, copy)
    path = copy / "fold_all" / "checkpoint_final.pth"
    content = torch.load(path, map_location="cpu", weights_only=False)
    content["inference_allowed_mirroring_axes"] = (0, 1, 2)
    torch.save(content, path)
    return copy


def serve(result: Path, folder: Path) -> Path:
    """A repository of Triton with the nnU-Net imported once per way."""
    repository = TritonRepository(folder / "repository", CpuServing(cache_dir=folder / "cache"))
    for way, serving in WAYS.items():
        choices = NnunetChoices(name=way, orientation="RAS", serving=serving)
        import_nnunet(result, folder / way, choices, PHANTOM_ORGANS)
        repository.install(folder / way)
    return repository.root


def agreement(label: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    """Dice of every organ, and the least of those that are large enough."""
    found = dice_by_organ(label, reference, PHANTOM_ORGANS.names)
    dice = {organ: round(value, 4) for organ, value in found.items() if value is not None}
    judged = [
        value
        for organ, value in dice.items()
        if (reference == PHANTOM_ORGANS[organ].label).sum() >= CERTAIN_VOXELS
    ]
    return {"least_dice": min(judged, default=None), "judged": len(judged), "dice": dice}


def compare(result: Path, ct: Path, folder: Path) -> dict[str, Any]:
    """What both sides say of one CT, for every way to serve the member."""
    told: dict[str, Any] = {}
    reference = {}
    for mirrored in (False, True):
        begun = time.perf_counter()
        reference[mirrored] = theirs(result, ct, folder, mirrored)
        seconds = round(time.perf_counter() - begun, 2)
        told["nnunet_mirrored_s" if mirrored else "nnunet_s"] = seconds
    volume = read_volume(ct)
    source = ArraySource(volume.voxels, volume.geometry)
    with (
        bare_triton(serve(result, folder), folder) as address,
        closing(TritonPredictor(TritonOptions(address))) as predictor,
    ):
        for way, serving in WAYS.items():
            say(way)
            begun = time.perf_counter()
            found = predict(source, predictor.ensemble([way]), predictor, NNUNET_OVERLAP)
            told[way] = {
                "seconds": round(time.perf_counter() - begun, 2),
                **agreement(found.label, reference[bool(serving.get("mirrored"))]),
            }
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--result", type=Path, help="An nnU-Net; default: the demo's.")
    parser.add_argument("--ct", type=Path, help="NIfTI file; default: a phantom.")
    given = parser.parse_args()
    results = kept_results() if given.result is None else {given.result.name: given.result}
    told: dict[str, Any] = {}
    for plan, result in results.items():
        say(plan)
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
            told[plan] = compare(allow_mirrors(result, folder), ct, folder)
    described = machine("nnunetv2", "torch", "onnxruntime")
    report("nnunet_parity", plans=told, machine=described)


if __name__ == "__main__":
    main()
