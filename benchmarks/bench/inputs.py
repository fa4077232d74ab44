"""The CTs that the benchmarks work on: procedural, so that everybody has them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import Volume, read_volume, write_volume
from atlas_core.phantoms import PhantomGrid, make_phantom
from atlas_core.store import CaseStore
from bench.measurement import say
from numpy.typing import NDArray

CACHE = Path(__file__).parents[1] / ".cache"
"""A full-size phantom takes half a minute to draw: it is drawn once per checkout."""

SEED = 1
SLICE_MM = 1.25


def full_size_ct(slices: int) -> Volume:
    """A CT of 512 × 512 × `slices` voxels, int16 in the axis order LPS, as most scanners write it.

    Args:
        slices: at most 200 are drawn; more are the same body again, mirrored, one above the other.
    """
    drawn = _drawn()
    block = drawn.voxels
    mirrored = block[:, :, ::-1]
    repeats = -(-slices // block.shape[2])
    stacked = np.concatenate([mirrored if at % 2 else block for at in range(repeats)], axis=2)
    voxels = np.asfortranarray(stacked[:, :, :slices])
    shape = (voxels.shape[0], voxels.shape[1], voxels.shape[2])
    return Volume(voxels, replace(drawn.geometry, shape=shape))


def small_ct() -> Volume:
    """A CT of about the size that people send over the network: 160 × 160 voxels a slice."""
    phantom = make_phantom(SEED, grid=PhantomGrid(columns=160, slice_mm=2.9, axis_codes="LPS"))
    return Volume(phantom.ct, phantom.geometry)


def put_into_store(store: CaseStore, case_id: str, ct: Volume) -> Path:
    """Writes `ct` as a case of `store`; its file."""
    store.write_ct(case_id, ct)
    return store.ct_path(case_id)


def describe(ct: Volume) -> dict[str, object]:
    """For the JSON line."""
    return {
        "voxels": list(ct.geometry.shape),
        "spacing_mm": [round(mm, 3) for mm in ct.geometry.spacing_mm],
        "type": str(ct.voxels.dtype),
    }


def _drawn() -> Volume:
    path = CACHE / f"phantom-{SEED}-512x512x200.nii.gz"
    if path.exists():
        return read_volume(path)
    say("drawing a phantom of 512 x 512 x 200 voxels (once per checkout)")
    phantom = make_phantom(SEED, grid=PhantomGrid(columns=512, slice_mm=SLICE_MM, axis_codes="LPS"))
    ct: NDArray[np.int16] = np.asfortranarray(phantom.ct[:, :, :200])
    geometry = VolumeGeometry((ct.shape[0], ct.shape[1], ct.shape[2]), phantom.geometry.affine)
    CACHE.mkdir(exist_ok=True)
    (CACHE / ".gitignore").write_text("*\n", encoding="ascii")
    write_volume(path, ct, geometry)
    return Volume(ct, geometry)
