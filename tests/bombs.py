"""Files that are small on disk and enormous in memory."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import write_pieces
from numpy.typing import DTypeLike, NDArray


def compress(path: Path) -> None:
    """Pack a file of ``torch.save`` again, compressed: as a zip bomb is, of any size."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def overlap(path: Path) -> None:
    """Have the directory of a zip name its largest entry a hundred times: as large as if there."""
    with zipfile.ZipFile(path, "a") as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        archive.filelist += [largest] * 100
        archive._didModify = True  # type: ignore[attr-defined]


def write_planes(
    path: Path,
    grid: VolumeGeometry,
    plane: Callable[[int], NDArray[Any]],
    dtype: DTypeLike,
) -> None:
    """Write a volume of any size plane by plane; equal planes compress to almost nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    planes = (plane(k).ravel(order="F") for k in range(grid.shape[2]))
    write_pieces(path, planes, grid, np.dtype(dtype))
