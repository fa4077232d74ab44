"""Labels of an imported nnU-Net, as Triton serves it, against nnU-Net's own predictor: JSON.

    python benchmarks/nnunet_parity.py --ct CT.nii.gz

The nnU-Nets are the ones that nnU-Net has trained on phantoms (``models/phantom_nnunets``), or a
site's own (``--result``). Both sides start from the same file: nnU-Net's `predict_from_files`, and
our pipeline with a real Triton. Reported are Dice by organ between the two and the seconds of each,
without mirroring and with it, for every way to serve the member: on the CT, and on the CT brought
to the network's grid before, where neither side resamples. Both sides are compared by voxels above
one half, as pseudo labels are, and by nnU-Net's largest class.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from atlas_attention.triton import TritonOptions, TritonPredictor
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import read_volume, write_volume
from atlas_core.imaging.resampling import resample_image
from atlas_core.phantoms import PHANTOM_ORGANS, PhantomGrid, make_phantom
from atlas_flows.demos import kept_results
from atlas_flows.demos.phantom_nnunet import (
    CHECKPOINT,
    COLUMNS,
    HELD_OUT,
    NNUNET_OVERLAP,
    nnunets_own,
)
from atlas_models.evaluation.phantom_evaluation import ArraySource, dice_by_organ, predict
from atlas_models.importing import NnunetChoices, import_nnunet
from atlas_models.serving import CpuServing, TritonRepository
from bench.measurement import machine, report, say
from bench.serving import bare_triton


@dataclass(frozen=True)
class TurnedCt:
    """Hounsfield units on a grid whose axes run along RAS+."""

    voxels: np.ndarray
    geometry: VolumeGeometry


CERTAIN_VOXELS = 200
"""An organ of fewer voxels is reported, not judged: a voxel is a percent of it."""

WAYS: dict[str, dict[str, Any]] = {
    "linear": {},
    "nnunet": {"resampling": "nnunet"},
    "as_nnunet": {"resampling": "nnunet", "windows": "volume"},
    "mirrored_linear": {"mirrored": True},
    "mirrored_as_nnunet": {"mirrored": True, "resampling": "nnunet", "windows": "volume"},
}
"""Name → how the member is served."""


def allow_mirrors(result: Path, folder: Path) -> Path:
    """The result with a checkpoint that says its training was mirrored, as most are."""
    copy = folder / "result"
    shutil.copytree(result, copy)
    for path in copy.glob(f"fold_*/{CHECKPOINT}"):
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
    voxels = {organ: int((reference == PHANTOM_ORGANS[organ].label).sum()) for organ in dice}
    judged = [dice[organ] for organ in dice if voxels[organ] >= CERTAIN_VOXELS]
    return {"least_dice": min(judged, default=None), "judged": len(judged), "dice": dice}


def compare(
    predictor: TritonPredictor, result: Path, volume: TurnedCt, folder: Path
) -> dict[str, Any]:
    """What both sides say of one CT, for every way to serve the member."""
    told: dict[str, Any] = {}
    reference, halves = {}, {}
    ct = folder / "ct_0000.nii.gz"
    write_volume(ct, volume.voxels, volume.geometry)
    for mirrored in (False, True):
        begun = time.perf_counter()
        reference[mirrored] = nnunets_own(result, ct, mirrored=mirrored)
        seconds = round(time.perf_counter() - begun, 2)
        told["nnunet_mirrored_s" if mirrored else "nnunet_s"] = seconds
        halves[mirrored] = nnunets_own(result, ct, mirrored=mirrored, above_half=True)
    source = ArraySource(volume.voxels, volume.geometry)
    for way, serving in WAYS.items():
        begun = time.perf_counter()
        found = predict(source, predictor.ensemble([way]), predictor, NNUNET_OVERLAP)
        seconds = round(time.perf_counter() - begun, 2)
        mirrored = bool(serving.get("mirrored"))
        told[way] = {
            "seconds": seconds,
            **agreement(found.label, halves[mirrored]),
            "largest_class": agreement(found.label, reference[mirrored]),
        }
    told["voxels"] = {
        organ.name: int((reference[False] == organ.label).sum()) for organ in PHANTOM_ORGANS
    }
    return told


def read_ct(path: Path | None) -> TurnedCt:
    """In the orientation that the nnU-Nets were trained in, which is RAS+."""
    if path is None:
        phantom = make_phantom(HELD_OUT, grid=PhantomGrid(COLUMNS, axis_codes="RAS"))
        return TurnedCt(phantom.ct, phantom.geometry)
    volume = read_volume(path)
    geometry = volume.geometry
    return TurnedCt(geometry.axis_map.to_canonical(volume.voxels), geometry.canonical())


def on_grid(volume: TurnedCt, spacing_mm: tuple[float, float, float]) -> TurnedCt:
    """The CT with the network's spacing: neither side has anything to resample then.

    A box is seldom a whole number of voxels long. Those of the grid that fills it are called as
    long as the network's, or both sides would resample by a percent.
    """
    geometry = volume.geometry.resampled(spacing_mm)
    voxels = resample_image(volume.voxels, volume.geometry, geometry)
    matrix = geometry.matrix.copy()
    matrix[:3, :3] *= np.array(spacing_mm) / geometry.spacing_mm
    exact = VolumeGeometry.from_array(geometry.shape, matrix)
    return TurnedCt(np.rint(voxels).astype(np.int16), exact)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--result", type=Path, help="An nnU-Net; default: those of the phantoms.")
    parser.add_argument("--ct", type=Path, action="append", help="NIfTI; default: a phantom.")
    given = parser.parse_args()
    results = kept_results() if given.result is None else {given.result.name: given.result}
    told: dict[str, Any] = {}
    for plan, result in results.items():
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            mirroring = allow_mirrors(result, folder)
            with (
                bare_triton(serve(mirroring, folder), folder) as address,
                closing(TritonPredictor(TritonOptions(address))) as predictor,
            ):
                (spec,) = predictor.ensemble([next(iter(WAYS))])
                for path in given.ct or [None]:
                    name = "phantom" if path is None else path.name
                    volume = read_ct(path)
                    say(f"{plan}: {name}, on its own grid and on the network's")
                    told.setdefault(name, {})[plan] = {
                        "on_its_grid": compare(predictor, mirroring, volume, folder),
                        "on_the_networks_grid": compare(
                            predictor, mirroring, on_grid(volume, spec.spacing_mm), folder
                        ),
                    }
    report("nnunet_parity", cts=told, machine=machine("nnunetv2", "torch", "onnxruntime"))


if __name__ == "__main__":
    main()
