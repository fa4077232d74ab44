"""CTs of a hand's size for tests that score many of them: a body of smooth blobs in air."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import write_volume
from scipy.ndimage import gaussian_filter

SHAPE = (56, 48, 40)
SPACING_MM = (3.0, 3.0, 3.0)


def write_small_cts(folder: Path, count: int, seed: int) -> None:
    """Write ``case_<n>.nii.gz`` for n in 0..count-1; all different, the same for the same seed."""
    geometry = VolumeGeometry.from_array(SHAPE, np.diag([*SPACING_MM, 1.0]))
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        random = np.random.default_rng([seed, number])
        tissue = gaussian_filter(random.normal(size=SHAPE), 3.0)
        hu = 60.0 + 120.0 * tissue / tissue.std()
        hu[:4], hu[-4:], hu[:, :4], hu[:, -4:] = (-1000.0,) * 4
        voxels = np.asfortranarray(np.round(hu).astype(np.int16))
        write_volume(folder / f"case_{number}.nii.gz", voxels, geometry)
