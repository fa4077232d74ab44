"""Reference windows, and what a model answers to them on a CPU.

The answers are kept in the store of models by the SHA-256 of the graph, so that a process without
ONNX Runtime has them once another one has computed them.
"""

from __future__ import annotations

from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
from atlas_core.atomic_writes import replace_file
from atlas_core.errors import NotFound
from atlas_core.model_spec import INPUT_NAME, OUTPUT_NAME, ModelSpec
from atlas_core.overlap import dice
from atlas_core.phantoms import PhantomGrid, make_phantom
from atlas_models.serving import GRAPH_FILE
from numpy.typing import NDArray

SEED = 20
SHIFTS_MM = (0.0, 60.0)
"""Of the windows from the middle of a phantom, along its z."""

_COLUMNS = 96


def reference_windows(spec: ModelSpec) -> list[NDArray[np.float32]]:
    """Windows of a phantom on the model's grid, float32 HU ``[z, y, x]``; the same everywhere."""
    phantom = make_phantom(SEED, grid=PhantomGrid(columns=_COLUMNS, axis_codes="RAS"))
    spacing = phantom.geometry.spacing_mm
    windows = []
    for shift in SHIFTS_MM:
        nearest = []
        for axis, (size, step) in enumerate(zip(spec.patch, spec.spacing_mm, strict=True)):
            voxels = phantom.ct.shape[axis]
            along_mm = (np.arange(size) - size / 2) * step + (shift if axis == 2 else 0.0)
            at = np.rint(voxels / 2 + along_mm / spacing[axis]).astype(np.intp)
            nearest.append(np.clip(at, 0, voxels - 1))
        window = phantom.ct[np.ix_(*nearest)].astype(np.float32).transpose(2, 1, 0)
        windows.append(np.ascontiguousarray(window))
    return windows


def expected_answers(spec: ModelSpec, graph: Path, kept: Path) -> list[NDArray[np.uint8]]:
    """What the exported graph answers to the reference windows on a CPU, uint8
    ``[organ, z, y, x]`` each.

    Args:
        graph: folder of the exported model.
        kept: folder where answers are kept.

    Raises:
        NotFound: none are kept, and there is no ONNX Runtime here to compute them.
    """
    path = kept / f".reference-{spec.sha256}.npz"
    if path.is_file():
        with np.load(path, allow_pickle=False) as answers:
            return [answers[f"arr_{number}"] for number in range(len(SHIFTS_MM))]
    if find_spec("onnxruntime") is None:
        raise NotFound(
            f"nobody knows what {spec.name}@{spec.version} answers on a CPU",
            remedy="run `atlasloop doctor` once where models are trained or imported; it keeps the "
            "answers in the store of models",
        )
    import onnxruntime

    session = onnxruntime.InferenceSession(graph / GRAPH_FILE, providers=["CPUExecutionProvider"])
    computed = [
        np.asarray(session.run([OUTPUT_NAME], {INPUT_NAME: window[None, None]})[0][0], np.uint8)
        for window in reference_windows(spec)
    ]
    packed = BytesIO()
    np.savez_compressed(packed, *computed)
    kept.mkdir(parents=True, exist_ok=True)
    replace_file(path, packed.getvalue())
    return computed


def largest_step(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> int:
    """The largest difference of two answers, in steps of 255."""
    return int(np.abs(one.astype(np.int16) - other.astype(np.int16)).max())


def least_dice(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Of the organs' masks (p > 0.5), the Dice of the one that is least alike."""
    found = [dice(a > 127, b > 127) for a, b in zip(one, other, strict=True)]
    return min((value for value in found if value is not None), default=1.0)
