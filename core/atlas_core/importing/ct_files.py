"""A CT that is being imported: a file that is read in pieces, as often as needed, never whole.

Memory is bounded by a piece, whatever the header claims and however well zeros compress. What a CT
is, and whether it is one, is known after one reading, before anything is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from atlas_core.errors import UnsupportedVolume
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import (
    AffineSource,
    content_sha256_of,
    read_header,
    read_pieces,
    write_pieces,
)
from atlas_core.importing.plausibility import AIR_HU, VoxelSurvey

SAMPLED: Final = 64
"""One voxel in so many is looked at to find the middle of the body."""


@dataclass(frozen=True)
class CtFile:
    """A NIfTI file that was read to its end once, without errors.

    Attributes:
        path: the file.
        geometry: its grid.
        survey: its values.
        dtype: of the values as they are read.
        warnings: what is unusual about the header.
    """

    path: Path
    geometry: VolumeGeometry
    survey: VoxelSurvey
    dtype: np.dtype[Any]
    warnings: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path, affine: AffineSource | None = None) -> CtFile:
        """Reads `path` once.

        Args:
            affine: which affine counts where a header has two of different size.

        Raises:
            NotFound, CorruptFile, UnsupportedVolume, LimitExceeded: as `read_volume`, and
                `VolumeGeometry.require_bounded`.
        """
        header = read_header(path)
        geometry = header.placed(affine)
        geometry.require_bounded()  # before its voxels cost anything
        if min(geometry.shape) < 2:
            raise UnsupportedVolume(
                "a single slice is no volume",
                expected="at least two voxels along each axis",
                got="×".join(map(str, geometry.shape)),
                remedy="import the whole scan",
            )
        survey = VoxelSurvey()
        dtype = np.dtype(np.int16)
        for piece in read_pieces(path):
            survey.add(piece)
            dtype = piece.dtype
        return cls(path, geometry, survey, dtype, header.warnings)

    def content_sha256(self) -> str:
        """`imaging.content_sha256` of the volume."""
        return content_sha256_of(self.geometry, self.survey.narrowest, read_pieces(self.path))

    def write(self, path: Path) -> None:
        """Writes the CT losslessly and in its own axis order: as int16 if that loses nothing (half
        the bytes to store and to read), else as it is."""
        dtype = np.dtype(np.int16) if self.survey.fits(np.int16) else self.dtype
        write_pieces(path, read_pieces(self.path), self.geometry, dtype)

    def midline_mm(self) -> float:
        """Left-right centre of the body (mm, RAS+): mean x of what is denser than air.

        One voxel in `SAMPLED` is looked at: a few thousand are plenty for a mean.
        """
        random = np.random.default_rng(0)
        row = self.geometry.matrix[0]
        count, total, start = 0, 0.0, 0
        for piece in read_pieces(self.path):
            sample = random.integers(piece.size, size=-(-piece.size // SAMPLED))
            body = start + sample[piece[sample] > AIR_HU]
            index = np.unravel_index(body, self.geometry.shape, order="F")
            total += float(sum(row[axis] * index[axis].sum() for axis in range(3)))
            count, start = count + len(body), start + piece.size
        if not count:
            return float(self.geometry.corners_mm()[:, 0].mean())
        return float(total / count + row[3])
