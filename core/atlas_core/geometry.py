"""Geometry of a volume, without its voxels.

World coordinates are millimetres in RAS+ (x to the patient's Right, y to Anterior, z to Superior),
as in NIfTI. Arrays are indexed ``[i, j, k]`` in the file's own axis order; *canonical* means that
the axes run as close to R, A, S as a permutation and flips can bring them (nothing is resampled).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from atlas_core.errors import GridMismatch, LimitExceeded, UnsupportedVolume

GRID_TOLERANCE = 0.02
"""Two grids are the same if no corner of one lies further than this share of a voxel from the
other's. Real masks differ from their CT by the float32 rounding of a qform quaternion
(micrometres); a true mismatch is at least a good part of a voxel."""

MIN_SPACING_MM = 1e-3
MAX_SPACING_MM = 100.0

MAX_LENGTH_MM = 2500.0
MAX_WIDTH_MM = 1250.0
"""Largest extent of a CT: no table moves further, and no bore is half as wide."""

MAX_GRID_VOXELS = 1 << 30
"""Of a CT on the grid of a model: the largest extent at 1.5 mm."""

Shape3 = tuple[int, int, int]
Float3 = tuple[float, float, float]
Affine = tuple[tuple[float, float, float, float], ...]
VoxelT = TypeVar("VoxelT", bound=np.generic)


@dataclass(frozen=True)
class AxisMap:
    """How canonical axes are read off a file's axes.

    Attributes:
        source: canonical axis ``a`` is file axis ``source[a]``.
        flip: canonical axis ``a`` runs against its file axis.
    """

    source: Shape3
    flip: tuple[bool, bool, bool]

    def to_canonical(self, voxels: NDArray[VoxelT]) -> NDArray[VoxelT]:
        """View of `voxels` ``[i, j, k]`` (file order) as ``[x, y, z]`` (RAS+). Copies nothing."""
        turned = voxels.transpose(self.source)
        return turned[tuple(slice(None, None, -1 if back else 1) for back in self.flip)]

    def from_canonical(self, voxels: NDArray[VoxelT]) -> NDArray[VoxelT]:
        """View of canonical `voxels` ``[x, y, z]`` in the file's own axis order. Copies nothing."""
        turned = voxels[tuple(slice(None, None, -1 if back else 1) for back in self.flip)]
        return turned.transpose(tuple(int(axis) for axis in np.argsort(self.source)))


@dataclass(frozen=True)
class VolumeGeometry:
    """Grid of a volume: number of voxels per axis and the affine from voxel index to RAS+ mm.

    Attributes:
        shape: voxels along ``i, j, k``.
        affine: 4×4, rows as tuples; ``affine @ (i, j, k, 1)`` is the centre of voxel i, j, k in mm.

    Raises:
        UnsupportedVolume: an empty axis, or an affine that is not finite, singular, or of absurd
            spacing.
    """

    shape: Shape3
    affine: Affine

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise UnsupportedVolume(
                "a volume needs three axes of at least one voxel", got=tuple(self.shape)
            )
        matrix = np.asarray(self.affine, dtype=np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
            raise UnsupportedVolume(
                "affine is not finite", expected="4x4 finite numbers", got=matrix.tolist()
            )
        spacing = np.linalg.norm(matrix[:3, :3], axis=0)
        if spacing.min() < MIN_SPACING_MM or spacing.max() > MAX_SPACING_MM:
            raise UnsupportedVolume(
                "affine is degenerate: implausible voxel spacing",
                expected=f"{MIN_SPACING_MM}..{MAX_SPACING_MM} mm on every axis",
                got=tuple(round(float(s), 6) for s in spacing),
            )
        if abs(np.linalg.det(matrix[:3, :3] / spacing)) < 1e-3:
            raise UnsupportedVolume("affine is degenerate: its axes do not span space")

    @classmethod
    def from_array(cls, shape: tuple[int, ...], affine: NDArray[Any]) -> VolumeGeometry:
        """Geometry from an array's shape and a 4×4 matrix."""
        rows = tuple(tuple(float(v) for v in row) for row in np.asarray(affine, dtype=np.float64))
        return cls(tuple(int(n) for n in shape), rows)  # type: ignore[arg-type]

    @cached_property
    def matrix(self) -> NDArray[np.float64]:
        """The affine as a read-only 4×4 array."""
        matrix = np.array(self.affine, dtype=np.float64)
        matrix.setflags(write=False)
        return matrix

    @property
    def spacing_mm(self) -> Float3:
        """Distance between voxel centres along i, j, k."""
        a, b, c = np.linalg.norm(self.matrix[:3, :3], axis=0)
        return (float(a), float(b), float(c))

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres (|det| of the affine; right for sheared grids too)."""
        return float(abs(np.linalg.det(self.matrix[:3, :3]))) / 1000.0

    @property
    def voxels(self) -> int:
        """Number of voxels."""
        return int(np.prod([int(n) for n in self.shape], dtype=object))

    @cached_property
    def axis_map(self) -> AxisMap:
        """Permutation and flips that bring the axes closest to R, A, S."""
        direction = self.matrix[:3, :3] / np.linalg.norm(self.matrix[:3, :3], axis=0)
        orders: tuple[Shape3, ...] = (
            (0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0),
        )  # fmt: skip

        def alignment(order: Shape3) -> tuple[float, ...]:
            """Total alignment with R, A, S; a tie (45 degrees) is broken by the directions
            themselves, so that the order of the file's axes never shows in the canonical grid."""
            turned = direction[:, order] * np.sign(direction[(0, 1, 2), order])
            # Nine digits: what float32 affines leave of equal numbers must compare as equal.
            return tuple(np.round([np.trace(turned), *turned.ravel()], 9).tolist())

        source = max(orders, key=alignment)
        flip = tuple(bool(direction[a, source[a]] < 0) for a in range(3))
        return AxisMap(source, flip)  # type: ignore[arg-type]

    @property
    def axis_codes(self) -> str:
        """Orientation as three letters: where each file axis points ("RAS", "LPS", "IPL" …)."""
        letters = [""] * 3
        for axis, (file_axis, back) in enumerate(
            zip(self.axis_map.source, self.axis_map.flip, strict=True)
        ):
            letters[file_axis] = ("LPI" if back else "RAS")[axis]
        return "".join(letters)

    def canonical(self) -> VolumeGeometry:
        """The same grid with its axes turned to RAS+; voxels follow by
        ``axis_map.to_canonical``."""
        matrix = np.eye(4)
        origin = self.matrix[:, 3].copy()
        for axis, (file_axis, back) in enumerate(
            zip(self.axis_map.source, self.axis_map.flip, strict=True)
        ):
            step = self.matrix[:, file_axis]
            matrix[:, axis] = -step if back else step
            if back:
                origin += step * (self.shape[file_axis] - 1)
        matrix[:, 3] = origin
        return VolumeGeometry.from_array(
            tuple(self.shape[axis] for axis in self.axis_map.source), matrix
        )

    def resampled(self, spacing_mm: Float3) -> VolumeGeometry:
        """The grid of about `spacing_mm` (per file axis) that fills the same box, edge to edge.

        The new number of voxels is ``round(n · old / new)``, at least 1, and the box is divided by
        it exactly; the spacing thus differs from the asked one by less than half a voxel per axis
        length, flips commute with resampling, and no content is cut off. Index ``j`` of the new
        grid lies at ``(j + 0.5) · n_old / n_new − 0.5`` of the old one.
        """
        shape = self._resampled_shape(spacing_mm)
        ratio = np.array([old / new for old, new in zip(self.shape, shape, strict=True)])
        matrix = self.matrix.copy()
        matrix[:3, :3] *= ratio
        matrix[:3, 3] += self.matrix[:3, :3] @ (ratio * 0.5 - 0.5)
        return VolumeGeometry.from_array(shape, matrix)

    def cropped(self, start: Shape3, shape: Shape3) -> VolumeGeometry:
        """The grid of the box of `shape` voxels whose first one is voxel `start` of this grid."""
        matrix = self.matrix.copy()
        matrix[:3, 3] += self.matrix[:3, :3] @ np.array(start, np.float64)
        return VolumeGeometry.from_array(shape, matrix)

    def start_of(self, box: VolumeGeometry, *, this: str, that: str, case: str = "") -> Shape3:
        """Where `box`, a cropped part of this grid or all of it, begins: see `cropped`.

        Args:
            this, that: what lies on the two grids, for the message.
            case: for the message; empty: none.

        Raises:
            GridMismatch: its voxels are none of this grid, or lie outside; names both grids.
        """
        i, j, k = (round(float(at)) for at in (np.linalg.inv(self.matrix) @ box.matrix[:, 3])[:3])
        inside = all(
            first >= 0 and first + n <= whole
            for first, n, whole in zip((i, j, k), box.shape, self.shape, strict=True)
        )
        if not (inside and self.cropped((i, j, k), box.shape).same_grid(box)):
            raise GridMismatch(
                f"{that} does not lie on the grid of {this}",
                case=case or None,
                expected=f"{this} {self}, or a box of it",
                got=f"{that} {box}",
            )
        return i, j, k

    def _resampled_shape(self, spacing_mm: Float3) -> Shape3:
        i, j, k = (
            max(1, round(n * old / new))
            for n, old, new in zip(self.shape, self.spacing_mm, spacing_mm, strict=True)
        )
        return i, j, k

    def require_bounded(self, grids_mm: Iterable[Float3] = (), *, case: str | None = None) -> None:
        """Refuse a volume that asks for more work than any CT does.

        A few voxels of a wrong spacing (100 mm) are millions on the grid of a model. To be called
        before anything is read or allocated.

        Args:
            grids_mm: spacing along canonical x, y, z of each model that will work on the volume.
            case: for the message.

        Raises:
            LimitExceeded: it is larger than a CT of a whole body, or has too many voxels on one of
                the grids.
        """
        voxels = "×".join(str(n) for n in self.shape)
        of_mm = "×".join(f"{mm:.4g}" for mm in self.spacing_mm)
        lengths = [n * mm for n, mm in zip(self.shape, self.spacing_mm, strict=True)]
        if max(lengths) > MAX_LENGTH_MM or sorted(lengths)[1] > MAX_WIDTH_MM:
            extent = "×".join(f"{mm:.4g}" for mm in lengths)
            raise LimitExceeded(
                "volume is larger than a whole body",
                case=case,
                expected=f"at most {MAX_LENGTH_MM:g} mm long and {MAX_WIDTH_MM:g} mm wide",
                got=f"{extent} mm: {voxels} voxels with a spacing of {of_mm} mm",
                remedy="correct the spacing in its header (millimetres), or crop it",
            )
        canonical = self.canonical()
        for grid_mm in grids_mm:
            shape = canonical._resampled_shape(grid_mm)
            if shape[0] * shape[1] * shape[2] > MAX_GRID_VOXELS:
                grid, grid_of_mm = ("×".join(f"{n:g}" for n in of) for of in (shape, grid_mm))
                raise LimitExceeded(
                    "volume has too many voxels on the grid of a model",
                    case=case,
                    expected=f"at most {MAX_GRID_VOXELS} of {grid_of_mm} mm",
                    got=f"{grid}, from {voxels} with a spacing of {of_mm} mm",
                    remedy="crop it, correct its spacing, or use models of a coarser grid",
                )

    def corners_mm(self) -> NDArray[np.float64]:
        """Centres of the eight corner voxels, ``[8, 3]`` in mm."""
        index = np.array(
            [[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], dtype=np.float64
        )
        index[:, :3] *= np.array(self.shape) - 1
        return np.asarray((index @ self.matrix.T)[:, :3])

    def same_grid(self, other: VolumeGeometry) -> bool:
        """Same shape, and corners within `GRID_TOLERANCE` of a voxel of each other."""
        if self.shape != other.shape:
            return False
        distance = np.linalg.norm(self.corners_mm() - other.corners_mm(), axis=1)
        return bool(distance.max() <= GRID_TOLERANCE * min(self.spacing_mm))

    def require_same_grid(self, other: VolumeGeometry, *, this: str, that: str, case: str) -> None:
        """Refuse two volumes of one case whose grids differ.

        Args:
            this, that: what the two volumes are, for the message ("CT", "liver mask").

        Raises:
            GridMismatch: naming both grids.
        """
        if not self.same_grid(other):
            raise GridMismatch(
                f"{that} and {this} have different grids",
                case=case,
                expected=f"{this} {self}",
                got=f"{that} {other}",
                remedy="resample the mask onto its CT (--resample) or fix its header",
            )

    def __str__(self) -> str:
        spacing = "×".join(f"{s:.4g}" for s in self.spacing_mm)
        origin = ", ".join(f"{v:.1f}" for v in self.matrix[:3, 3])
        shape = "×".join(str(n) for n in self.shape)
        return f"{shape} {self.axis_codes}, {spacing} mm, origin ({origin})"
