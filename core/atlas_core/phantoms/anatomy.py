"""The anatomy of a procedural abdomen: the tissue of every voxel, before it is scanned.

Everything is a level function in millimetres (negative inside) of a few primitives, drawn in a
fixed order on a grid whose coordinates are bent by a smooth random warp. Lengths and positions
describe a standard patient: x to the Right, y to Anterior, z to Superior, the origin in the middle
of the body at the height of the first lumbar vertebra (the transpyloric plane). Arrays run
``[z, y, x]``, C-order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numba import njit
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
SliceBox = tuple[slice, slice, slice]


class Tissue(IntEnum):
    """Tissue of a voxel. Organs with an inner structure have several."""

    AIR = 0
    SKIN = 1
    FAT = 2
    MUSCLE = 3
    CORTICAL_BONE = 4
    SPONGY_BONE = 5
    CARTILAGE = 6
    SPINAL_CANAL = 7
    LUNG = 8
    HEART = 9
    ARTERY = 10
    PORTAL_VEIN = 11
    SYSTEMIC_VEIN = 12
    BOWEL_WALL = 13
    BOWEL_FLUID = 14
    BOWEL_GAS = 15
    FAECES = 16
    ADRENAL = 17
    LIVER = 18
    LIVER_VESSEL = 19
    SPLEEN = 20
    KIDNEY_RIGHT_CORTEX = 21
    KIDNEY_RIGHT_MEDULLA = 22
    KIDNEY_LEFT_CORTEX = 23
    KIDNEY_LEFT_MEDULLA = 24
    RENAL_SINUS = 25
    RENAL_PELVIS = 26
    STOMACH_WALL = 27
    STOMACH_FLUID = 28
    STOMACH_GAS = 29
    AORTA = 30
    AORTA_CALCIFICATION = 31
    POSTCAVA = 32
    PANCREAS = 33
    PANCREAS_MASS = 34
    GALL_BLADDER = 35
    GALL_STONE = 36
    TABLE = 37


# --- smooth random fields -------------------------------------------------------------------------

_FIELD_HALF_MM = 340.0
"""Fields cover this far from the origin: beyond the field of view of any body scan (500 mm)."""

_SPLINE_STD = 0.33
"""Standard deviation of a cubic B-spline over independent unit normals: (mean of Σw²)^(3/2), about
0.479^1.5. Dividing by it gives fields of unit variance."""


@dataclass(frozen=True)
class SmoothField:
    """A smooth random scalar field of unit variance: a cubic B-spline over a lattice of normals.

    Attributes:
        coefficients: lattice ``[z, y, x]``.
        step_mm: distance of the lattice's nodes, about the size of the field's bumps.
    """

    coefficients: Float32Array
    step_mm: float

    @classmethod
    def sample(cls, rng: np.random.Generator, step_mm: float) -> SmoothField:
        nodes = int(np.ceil(2 * _FIELD_HALF_MM / step_mm)) + 4
        lattice = rng.standard_normal((nodes, nodes, nodes), dtype=np.float32)
        return cls(lattice / np.float32(_SPLINE_STD), step_mm)

    def on(self, z: Float64Array, y: Float64Array, x: Float64Array) -> Float32Array:
        """The field on the grid of the axes `z`, `y`, `x` (mm), ``[z, y, x]``.

        Summed axis by axis in a fixed order, so that the bits do not depend on threads or on how a
        volume is cut into slabs.
        """
        values = self.coefficients
        for axis, positions in enumerate((z, y, x)):
            nodes, weights = self._taps(positions)
            lengths = [1, 1, 1]
            lengths[axis] = len(positions)
            total = np.take(values, nodes[0], axis=axis) * weights[0].reshape(lengths)
            for node, weight in zip(nodes[1:], weights[1:], strict=True):
                total += np.take(values, node, axis=axis) * weight.reshape(lengths)
            values = total
        return values

    def _taps(self, positions: Float64Array) -> tuple[NDArray[np.int64], Float32Array]:
        """Nodes ``[4, n]`` and cubic B-spline weights ``[4, n]`` of `positions` along one axis."""
        place = (positions + _FIELD_HALF_MM) / self.step_mm
        first = np.clip(np.floor(place).astype(np.int64), 0, len(self.coefficients) - 4)
        t = np.clip(place - first, 0.0, 1.0)
        weights = np.stack(
            [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]
        )
        return first + np.arange(4)[:, None], (weights / 6.0).astype(np.float32)


BAND_MM = 6.0
"""Level functions are known at least this far outside a shape: ripples, thin layers of fat and
blends reach less."""

FAR_MM = 1e3
"""Level of what is further away than that."""

# --- primitives -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid: centre ``[3]`` (x, y, z), radii ``[3]``, rotation ``[3, 3]`` (its axes)."""

    centre: Float64Array
    radii: Float64Array
    rotation: Float64Array

    @property
    def reach(self) -> tuple[Float64Array, Float64Array]:
        """Lower and upper corner of its bounding box."""
        half = np.sqrt(((self.rotation * self.radii) ** 2).sum(axis=1))
        return self.centre - half, self.centre + half

    def grown(self, mm: float) -> Ellipsoid:
        return Ellipsoid(self.centre, self.radii + mm, self.rotation)


@dataclass(frozen=True)
class Tube:
    """A chain of cone segments: points ``[n, 3]`` (x, y, z), radii ``[n]``; `stretch` multiplies
    distances per axis, so 1.3 along y flattens the tube."""

    points: Float64Array
    radii: Float64Array
    stretch: Float64Array

    @property
    def reach(self) -> tuple[Float64Array, Float64Array]:
        """Lower and upper corner of its bounding box."""
        half = self.radii[:, None] / self.stretch
        return (self.points - half).min(axis=0), (self.points + half).max(axis=0)

    def along(self, values: Float64Array, position: Float32Array) -> Float32Array:
        """`values` ``[n]`` of the chain's points, interpolated at `position` of `Canvas.tube`."""
        return np.interp(position, np.arange(len(values)), values).astype(np.float32)


def smooth_tube(
    points: Sequence[Sequence[float]],
    radii: Sequence[float],
    *,
    pieces: int = 6,
    stretch: Sequence[float] = (1.0, 1.0, 1.0),
) -> Tube:
    """A tube through `points`: a Catmull-Rom spline with `pieces` segments per span."""
    knots = np.column_stack([np.asarray(points, float), np.asarray(radii, float)])
    padded = np.vstack([2 * knots[0] - knots[1], knots, 2 * knots[-1] - knots[-2]])
    spans = []
    t = np.arange(pieces)[:, None] / pieces
    for a, b, c, d in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        cubic = (-a + 3 * b - 3 * c + d) * t**3 + (2 * a - 5 * b + 4 * c - d) * t**2
        spans.append(0.5 * (cubic + (c - a) * t + 2 * b))
    path = np.vstack([*spans, knots[-1:]])
    # A spline overshoots; a radius must stay positive.
    return Tube(path[:, :3], np.maximum(path[:, 3], 0.5), np.asarray(stretch, float))


@dataclass(frozen=True)
class Pose:
    """How one organ of one patient differs from the standard one: turned and scaled about `centre`,
    then shifted."""

    centre: Float64Array
    shift: Float64Array
    scale: Float64Array
    rotation: Float64Array

    @classmethod
    def sample(
        cls,
        rng: np.random.Generator,
        centre: Sequence[float],
        *,
        shift_mm: float = 5.0,
        turn_deg: float = 6.0,
        size: float = 0.08,
        enlarge: float = 1.0,
    ) -> Pose:
        """A random pose; `size` is the relative standard deviation of its dimensions, half of it
        common to all three. All is cut at two standard deviations, so that anatomy stays anatomy.
        """
        draws = np.clip(rng.standard_normal(10), -2.0, 2.0)
        common = size * 0.7 * draws[9] + size * 0.7 * draws[3:6]
        return cls(
            np.asarray(centre, float),
            shift_mm * draws[0:3],
            enlarge * np.exp(common),
            rotation_matrix(np.deg2rad(turn_deg) * draws[6:9]),
        )

    def place(self, points: Sequence[Sequence[float]] | Float64Array) -> Float64Array:
        """Standard `points` ``[n, 3]`` where this patient has them."""
        offset = (np.asarray(points, float) - self.centre) * self.scale
        return self.centre + self.shift + offset @ self.rotation.T

    def ellipsoid(
        self,
        centre: Sequence[float],
        radii: Sequence[float],
        tilt_deg: Sequence[float] = (0.0, 0.0, 0.0),
    ) -> Ellipsoid:
        rotation = self.rotation @ rotation_matrix(np.deg2rad(np.asarray(tilt_deg, float)))
        return Ellipsoid(self.place([centre])[0], np.asarray(radii, float) * self.scale, rotation)

    def tube(
        self,
        points: Sequence[Sequence[float]],
        radii: Sequence[float],
        *,
        stretch: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> Tube:
        calibre = float(self.scale.mean())
        return smooth_tube(
            self.place(points).tolist(), [r * calibre for r in radii], stretch=stretch
        )


def rotation_matrix(angles: Float64Array) -> Float64Array:
    """Rotation about x, then y, then z by `angles` (radians), ``[3, 3]``."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return np.asarray(about_z @ about_y @ about_x, dtype=np.float64)


@njit(cache=True, nogil=True)
def _ellipsoid_level(x, y, z, centre, to_unit, level):  # type: ignore[no-untyped-def]
    """Signed distance (mm) to an ellipsoid along the ray from its centre, into `level`."""
    for k in range(level.shape[0]):
        for j in range(level.shape[1]):
            for i in range(level.shape[2]):
                dx = x[k, j, i] - centre[0]
                dy = y[k, j, i] - centre[1]
                dz = z[k, j, i] - centre[2]
                a = to_unit[0, 0] * dx + to_unit[0, 1] * dy + to_unit[0, 2] * dz
                b = to_unit[1, 0] * dx + to_unit[1, 1] * dy + to_unit[1, 2] * dz
                c = to_unit[2, 0] * dx + to_unit[2, 1] * dy + to_unit[2, 2] * dz
                unit = np.sqrt(a * a + b * b + c * c) + 1e-6
                level[k, j, i] = np.sqrt(dx * dx + dy * dy + dz * dz + 1e-6) * (1.0 - 1.0 / unit)


@njit(cache=True, nogil=True)
def _tube_level(  # type: ignore[no-untyped-def]
    x, y, z, points, radii, stretch, bounds, level, position
):
    """Signed distance (mm) to the nearest segment of a tube, and where along the chain it is
    nearest; segment ``s`` is looked at within ``bounds[s]`` (z, y, x: start, stop) only."""
    for s in range(points.shape[0] - 1):
        bx = (points[s + 1, 0] - points[s, 0]) * stretch[0]
        by = (points[s + 1, 1] - points[s, 1]) * stretch[1]
        bz = (points[s + 1, 2] - points[s, 2]) * stretch[2]
        per_length = 1.0 / (bx * bx + by * by + bz * bz + 1e-9)
        for k in range(bounds[s, 0, 0], bounds[s, 0, 1]):
            for j in range(bounds[s, 1, 0], bounds[s, 1, 1]):
                for i in range(bounds[s, 2, 0], bounds[s, 2, 1]):
                    ax = (x[k, j, i] - points[s, 0]) * stretch[0]
                    ay = (y[k, j, i] - points[s, 1]) * stretch[1]
                    az = (z[k, j, i] - points[s, 2]) * stretch[2]
                    t = min(max((ax * bx + ay * by + az * bz) * per_length, 0.0), 1.0)
                    ax -= t * bx
                    ay -= t * by
                    az -= t * bz
                    radius = radii[s] + t * (radii[s + 1] - radii[s])
                    distance = np.sqrt(ax * ax + ay * ay + az * az) - radius
                    if distance < level[k, j, i]:
                        level[k, j, i] = distance
                        position[k, j, i] = s + t


def union(a: Float32Array, b: Float32Array, blend_mm: float) -> Float32Array:
    """Union of two level functions with a fillet of about `blend_mm` between them."""
    near = np.clip(0.5 + 0.5 * (b - a) / np.float32(blend_mm), 0.0, 1.0)
    return np.asarray(
        b + (a - b) * near - np.float32(blend_mm) * near * (1.0 - near), dtype=np.float32
    )


def without(a: Float32Array, b: Float32Array, blend_mm: float) -> Float32Array:
    """`a` without `b`, with a rounded edge."""
    return -union(-a, b, blend_mm)


# --- the canvas -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Canvas:
    """A part of the grid being drawn on.

    Attributes:
        axes: undistorted coordinates along z, y, x (mm of the standard patient).
        x, y, z: where each voxel lies in the standard patient after the warp, ``[z, y, x]``, mm.
        ripple: two smooth fields that make surfaces uneven, ``[z, y, x]`` each.
        margin_mm: no voxel is displaced further than this.
        tissue: the picture, `Tissue` values, ``[z, y, x]``; the one thing that is written to.
    """

    axes: tuple[Float64Array, Float64Array, Float64Array]
    x: Float32Array
    y: Float32Array
    z: Float32Array
    ripple: tuple[Float32Array, Float32Array]
    margin_mm: float
    tissue: NDArray[np.uint8]

    def box(self, low: Float64Array, high: Float64Array) -> SliceBox:
        """Voxels that can lie between the corners `low` and `high` (x, y, z), and a band around."""
        slices = []
        for axis, lower, upper in zip(self.axes, low[::-1], high[::-1], strict=True):
            start, stop = np.searchsorted(axis, (lower - self._reach, upper + self._reach))
            slices.append(slice(int(start), int(stop)))
        return (slices[0], slices[1], slices[2])

    def everywhere(self) -> SliceBox:
        return (slice(None), slice(None), slice(None))

    def ellipsoid(
        self, shape: Ellipsoid, box: SliceBox | None = None
    ) -> tuple[SliceBox, Float32Array]:
        """Level function of `shape` in `box` (by default the box around it)."""
        box = self.box(*shape.reach) if box is None else box
        level = np.empty_like(self.x[box], order="C")
        to_unit = shape.rotation.T / shape.radii[:, None]
        _ellipsoid_level(self.x[box], self.y[box], self.z[box], shape.centre, to_unit, level)
        return box, level

    def tube(self, shape: Tube) -> tuple[SliceBox, Float32Array, Float32Array]:
        """Level function of `shape` in the box around it (`FAR_MM` where it is far), and the
        position along its chain of points."""
        box = self.box(*shape.reach)
        level = np.full_like(self.x[box], FAR_MM, order="C")
        position = np.zeros_like(level)
        ends = np.stack([shape.points[:-1], shape.points[1:]])
        half = np.maximum(shape.radii[:-1], shape.radii[1:])[:, None] / shape.stretch
        low, high = ends.min(axis=0) - half, ends.max(axis=0) + half
        bounds = np.array(
            [
                [
                    np.searchsorted(axis[part], (lower - self._reach, upper + self._reach))
                    for axis, part, lower, upper in zip(
                        self.axes, box, corner[::-1], opposite[::-1], strict=True
                    )
                ]
                for corner, opposite in zip(low, high, strict=True)
            ]
        )
        _tube_level(
            self.x[box], self.y[box], self.z[box],
            shape.points, shape.radii, shape.stretch, bounds, level, position,
        )  # fmt: skip
        return box, level, position

    @property
    def _reach(self) -> float:
        return self.margin_mm + BAND_MM

    def paint(self, box: SliceBox, where: NDArray[np.bool_], tissue: Tissue) -> None:
        self.tissue[box][where] = tissue

    def draw_tube(self, shape: Tube, tissue: Tissue) -> None:
        box, level, _ = self.tube(shape)
        self.paint(box, level < 0, tissue)

    def draw_ellipsoid(self, shape: Ellipsoid, tissue: Tissue) -> None:
        box, level = self.ellipsoid(shape)
        self.paint(box, level < 0, tissue)


# --- the trunk ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trunk:
    """Body wall, skeleton, chest.

    Attributes:
        half_width_mm, half_depth_mm: half axes of the cavity at the waist.
        fat_mm: subcutaneous fat at the flanks.
        wall_mm: abdominal wall muscle.
        dome_mm: height of the right diaphragm dome.
        vertebra_phase_mm: where in the vertebral period z = 0 falls.
        lean_mm: sideways lean of the spine over the height of the scan (scoliosis).
    """

    half_width_mm: float
    half_depth_mm: float
    fat_mm: float
    wall_mm: float
    dome_mm: float
    vertebra_phase_mm: float
    lean_mm: float

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Trunk:
        return cls(
            half_width_mm=float(rng.uniform(118, 136)),
            half_depth_mm=float(rng.uniform(78, 94)),
            # Mostly slim, some obese: the tail of a gamma distribution.
            fat_mm=float(np.clip(rng.gamma(3.0, 6.0), 5.0, 42.0)),
            wall_mm=float(rng.uniform(9, 15)),
            dome_mm=float(rng.uniform(102, 118)),
            vertebra_phase_mm=float(rng.uniform(0, 36)),
            lean_mm=float(np.clip(rng.normal(0, 4), -10, 10)),
        )

    def spine(self, z: Float32Array) -> tuple[Float32Array, Float32Array]:
        """Centre (x, y) of the vertebral bodies at height `z`: lumbar lordosis, a slight lean."""
        u = z / np.float32(150.0)
        x = np.float32(self.lean_mm) * np.sin(np.float32(1.7) * u)
        y = -46.0 - 14.0 * np.square(u - 0.25) + 0.0 * u
        return x.astype(np.float32), np.maximum(y, -78.0).astype(np.float32)

    def wall_level(self, canvas: Canvas) -> Float32Array:
        """Signed distance (mm) to the inside of the body wall, along the ray from the middle."""
        chest = np.clip((canvas.z + 40.0) / 180.0, -0.6, 1.0)
        # The cage narrows upwards, the pelvis widens downwards.
        width = self.half_width_mm * (1.0 - 0.06 * chest * chest)
        depth = self.half_depth_mm * (1.0 - 0.04 * chest)
        x, y = canvas.x, canvas.y - np.float32(7.0)
        power = 2.35  # between an ellipse and a rounded box, as trunks are
        unit = ((np.abs(x) / width) ** power + (np.abs(y) / depth) ** power) ** (1.0 / power)
        radius = np.sqrt(x * x + y * y)
        return np.asarray(radius * (1.0 - 1.0 / np.maximum(unit, 1e-3)), dtype=np.float32)

    def diaphragm_height(self, canvas: Canvas) -> Float32Array:
        """Height (mm) of the diaphragm above each (x, y): a dome per side, recesses at the wall."""
        left = canvas.x < 0
        across = np.abs(canvas.x) - 65.0
        across = np.where(across > 0, across / 78.0, across / 140.0)
        along = (canvas.y - 8.0) / np.where(canvas.y > 8.0, 120.0, 88.0)
        top = self.dome_mm - np.where(left, 9.0, 0.0)
        return np.asarray(top - 88.0 * (across**2 + along**2), dtype=np.float32)


def draw_trunk(canvas: Canvas, trunk: Trunk) -> tuple[Float32Array, Float32Array]:
    """Body wall, chest and skeleton.

    Returns:
        Level of the body cavity and of the abdomen below the diaphragm (mm, negative inside),
        ``[z, y, x]``: what organs must stay inside of.
    """
    everywhere = canvas.everywhere()
    wall = trunk.wall_level(canvas)
    # Fat is thick at flanks and back, thin over the breastbone.
    high_front = np.clip((canvas.y + 20.0) / 90.0, 0.0, 1.0) * np.clip(
        (canvas.z - 10.0) / 60.0, 0.0, 1.0
    )
    fat = np.float32(trunk.fat_mm) * (1.0 + 0.12 * canvas.ripple[0]) * (1.0 - 0.6 * high_front)
    outside = wall - np.float32(trunk.wall_mm) - np.maximum(fat, 2.0)
    # The back muscles bulge the outline; skin and fat go around them.
    outside = union(outside, _erector_level(canvas, trunk) - 0.45 * fat - 2.0, 24.0)
    canvas.paint(everywhere, outside < 2.0, Tissue.SKIN)
    canvas.paint(everywhere, outside < 0.0, Tissue.FAT)
    canvas.paint(everywhere, wall < trunk.wall_mm, Tissue.MUSCLE)
    canvas.paint(everywhere, wall < 0.0, Tissue.FAT)
    below = canvas.z - trunk.diaphragm_height(canvas)
    cavity = wall < -1.0
    canvas.paint(everywhere, cavity & (below > -3.0), Tissue.MUSCLE)
    canvas.paint(everywhere, cavity & (below > 0.0), Tissue.LUNG)
    _draw_ribs(canvas, wall)
    _draw_spine(canvas, trunk)
    _draw_pelvis(canvas, wall)
    return wall, np.maximum(wall + 1.5, below + 4.0)


def _draw_ribs(canvas: Canvas, wall: Float32Array) -> None:
    """Ribs: every 30 mm, falling from back to front, ending at the costal arch in cartilage."""
    everywhere = canvas.everywhere()
    slanted = canvas.z + 0.45 * canvas.y
    off = np.abs(np.mod(slanted, 30.0) - 15.0)
    rim = np.square(off / 6.0) + np.square((wall - 4.5) / 4.2)
    front = np.clip(canvas.y / 85.0, 0.0, 1.0) * np.clip(1.0 - np.abs(canvas.x) / 125.0, 0.0, 1.0)
    reach = canvas.z > -34.0 + 115.0 * front
    rib = reach & (rim < 1.0) & (np.abs(canvas.x) > 20.0)
    cartilage = canvas.y > 48.0
    canvas.paint(everywhere, rib & ~cartilage, Tissue.CORTICAL_BONE)
    canvas.paint(everywhere, rib & ~cartilage & (rim < 0.4), Tissue.SPONGY_BONE)
    canvas.paint(everywhere, rib & cartilage, Tissue.CARTILAGE)
    breastbone = (np.abs(canvas.x) < 17.0) & (canvas.y > 40.0) & (canvas.z > 78.0)
    breastbone &= np.abs(wall - 5.0) < 5.0
    canvas.paint(everywhere, breastbone, Tissue.SPONGY_BONE)


def _erector_level(canvas: Canvas, trunk: Trunk) -> Float32Array:
    """Level of the two columns of back muscle beside the spinous processes, about mm."""
    centre_x, centre_y = trunk.spine(canvas.z)
    across = (np.abs(canvas.x - centre_x) - 29.0) / 28.0
    along = (canvas.y - centre_y + 37.0) / 18.0
    return np.asarray(18.0 * (np.sqrt(across**2 + along**2) - 1.0), dtype=np.float32)


def _draw_spine(canvas: Canvas, trunk: Trunk) -> None:
    """Back muscles, vertebrae with arches and processes, discs, spinal canal."""
    box = canvas.box(np.array([-75.0, -125.0, -1e3]), np.array([75.0, -20.0, 1e3]))
    z = canvas.z[box]
    centre_x, centre_y = trunk.spine(z)
    x, y = canvas.x[box] - centre_x, canvas.y[box] - centre_y
    canvas.paint(box, _erector_level(canvas, trunk)[box] < 0, Tissue.MUSCLE)
    height = np.mod(z + np.float32(trunk.vertebra_phase_mm), 36.0)
    vertebra = height < 28.0
    body = np.sqrt(np.square(x / 23.0) + np.square(y / 17.0))
    arch = np.sqrt(np.square(x / 17.0) + np.square((y + 25.0) / 14.0))
    middle = np.abs(height - 12.0)
    spinous = (np.abs(x) < 3.6) & (y < -34.0) & (y > -64.0) & (middle < 11.0 + 0.15 * (y + 34.0))
    transverse = (np.abs(y + 22.0) < 4.5) & (np.abs(x) < 40.0) & (middle < 6.0)
    canvas.paint(box, (body < 1.0) & ~vertebra, Tissue.CARTILAGE)
    bone = ((body < 1.0) | (arch < 1.0)) & vertebra
    canvas.paint(box, bone | spinous | transverse, Tissue.CORTICAL_BONE)
    inside = (height > 2.0) & (height < 26.0) & (body < 0.9)
    canvas.paint(box, inside, Tissue.SPONGY_BONE)
    canal = np.square(x / 11.0) + np.square((y + 25.0) / 8.5) < 1.0
    canvas.paint(box, canal, Tissue.SPINAL_CANAL)


def _draw_pelvis(canvas: Canvas, wall: Float32Array) -> None:
    """The wings of the ilium, where the scan goes low enough."""
    everywhere = canvas.everywhere()
    crest = -138.0 - 0.006 * np.square(canvas.y + 15.0)
    wing = (canvas.z < crest) & (np.abs(canvas.x) > 48.0) & (canvas.y < 45.0)
    thickness = np.abs(wall + 9.0)
    canvas.paint(everywhere, wing & (thickness < 7.0), Tissue.CORTICAL_BONE)
    canvas.paint(everywhere, wing & (thickness < 4.0) & (canvas.z < crest - 3), Tissue.SPONGY_BONE)
    iliacus = wing & (wall > -24.0) & (wall < -16.0)
    canvas.paint(everywhere, iliacus, Tissue.MUSCLE)
