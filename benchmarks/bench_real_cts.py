"""What models say of real CTs: Dice where labels are known, and where their attention lies.

The CTs are public ones that a folder holds (``--data``, by default where the tests look):
TotalSegmentator's example with nine organs, its series of 20 slices with six, a chest CTA of which
the aorta is known, and a portal-venous series without labels. Which of them the models' anatomies
were drawn from, says their provenance. Attention of a voxel is that of its most attended organ.

* ``dice``: mean over the labelled organs of the pseudo label, and of each model alone; ``liver``.
* ``attended_share``: of the body's voxels, those whose attention is at least the threshold.
* ``air_share``: of all attention, what lies outside the body.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from atlas_attention.fusion import ATTENDED_FROM, ATTENTION_SCALE
from atlas_core.imaging import Volume, read_label, read_volume
from atlas_core.imaging.dicom_reader import the_series, write_series
from atlas_core.importing.presets import preset
from atlas_core.phantoms import PHANTOM_ORGANS
from atlas_embedded.settings import EmbeddedSettings
from atlas_models.evaluation.phantom_evaluation import (
    ArraySource,
    LocalPredictor,
    dice_by_organ,
    predict,
)
from bench.measurement import machine, report, say
from numpy.typing import NDArray
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from real_data import real_data

TOTAL = {
    first: value
    for value, (first, *_) in preset("totalsegmentator").labels.items()
    if first in PHANTOM_ORGANS.names
}
"""Organ → label id of TotalSegmentator v2."""

BODY_HU = -300.0

LEAST_VOXELS = 50
"""An organ of fewer is the rim of one that the CT cuts."""


@dataclass(frozen=True)
class RealCt:
    """A CT on its own grid; `labels`: organ → id in `label`."""

    name: str
    ct: Volume
    label: NDArray[Any] | None = None
    labels: Mapping[str, int] | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=real_data(), help="folder of the real CTs")
    parser.add_argument(
        "--models", type=Path, default=EmbeddedSettings().models_dir, help="exported models"
    )
    given = parser.parse_args()
    folders = sorted(path.parent for path in given.models.glob("*/model.json"))
    cts = {}
    with LocalPredictor(folders) as predictor, tempfile.TemporaryDirectory() as scratch:
        for real in _cts(given.data, Path(scratch)):
            say(f"{real.name}: {' × '.join(map(str, real.ct.geometry.shape))} voxels")
            predictor.clear_cache()
            cts[real.name] = _judged(real, predictor)
    report(
        "real_cts",
        attention_threshold=round(ATTENDED_FROM * ATTENTION_SCALE, 3),
        models=[spec.name for spec in predictor.specs],
        cts=cts,
        machine=machine("onnxruntime"),
    )


def _cts(data: Path, scratch: Path) -> Iterator[RealCt]:
    examples = data / "TotalSegmentator" / "tests" / "reference_files"
    label = read_label(examples / "example_seg_fast_force_split.nii.gz")
    yield RealCt(
        "example_ct", read_volume(examples / "example_ct.nii.gz"), label.voxels, TOTAL
    )  # fmt: skip
    yield _of_series("example_ct_dicom", examples / "example_ct_dicom", scratch,
                     examples / "example_seg_dicom.nii.gz")  # fmt: skip
    chest = examples / "aorta_report" / "test_result" / "models"
    aorta = read_label(chest / "aorta.nii.gz")
    yield RealCt("chest_cta", read_volume(chest / "ct_cropped.nii.gz"), aorta.voxels, {"aorta": 1})
    with tarfile.open(data / "mirp" / "CRLM-CT-1004.tar.xz") as archive:
        archive.extractall(scratch / "mirp", filter="data")
    yield _of_series("crlm_1004", scratch / "mirp", scratch)


def _of_series(name: str, folder: Path, scratch: Path, label: Path | None = None) -> RealCt:
    """A series, and its label map turned to the grid that the reader makes of it."""
    path = scratch / f"{name}.nii.gz"
    write_series(the_series(folder).files, path)
    ct = read_volume(path)
    if label is None:
        return RealCt(name, ct)
    given = read_label(label)
    canonical = given.geometry.axis_map.to_canonical(given.voxels)
    turned = ct.geometry.axis_map.from_canonical(canonical)
    return RealCt(name, ct, turned, TOTAL)


def _judged(real: RealCt, predictor: LocalPredictor) -> dict[str, Any]:
    source = ArraySource(real.ct.voxels, real.ct.geometry)
    body, truth = _body(real.ct), _truth(real)
    told: dict[str, Any] = {}
    for spec in (*predictor.specs, None):
        specs = predictor.specs if spec is None else (spec,)
        found = predict(source, specs, predictor, maps=True)
        attention = functools.reduce(np.maximum, found.attention.values())
        total = float(attention.sum(dtype=np.float64))
        told["ensemble" if spec is None else spec.name] = {
            **_dice(found.label, truth),
            "attended_share": round(float((attention[body] >= ATTENDED_FROM).mean()), 4),
            "air_share": round(float(attention[~body].sum(dtype=np.float64)) / max(total, 1.0), 4),
        }
    return told


def _truth(real: RealCt) -> NDArray[np.uint8] | None:
    """The labels that are known, with our ids."""
    if real.label is None or real.labels is None:
        return None
    truth = np.zeros(real.label.shape, np.uint8, order="F")
    for organ, value in real.labels.items():
        where = real.label == value
        if np.count_nonzero(where) >= LEAST_VOXELS:
            truth[where] = PHANTOM_ORGANS[organ].label
    return truth


def _dice(label: NDArray[np.uint8], truth: NDArray[np.uint8] | None) -> dict[str, Any]:
    if truth is None:
        return {}
    there = [one.name for one in PHANTOM_ORGANS if (truth == one.label).any()]
    found = dice_by_organ(label, truth, there)
    dice = {organ: round(value or 0.0, 3) for organ, value in found.items()}
    return {"dice": round(float(np.mean(list(dice.values()))), 4), "by_organ": dice}


def _body(ct: Volume) -> NDArray[np.bool_]:
    """The largest piece of what is no air, with the air inside it."""
    solid = ndimage.binary_opening(ct.voxels > BODY_HU, iterations=2)
    pieces, _ = ndimage.label(solid)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    body = pieces == sizes.argmax()
    for plane in np.moveaxis(body, ct.geometry.axis_map.source[2], 0):
        plane[:] = ndimage.binary_fill_holes(plane)
    return np.asarray(body)


if __name__ == "__main__":
    main()
