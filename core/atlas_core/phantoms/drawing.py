"""CTs drawn from anatomies of people: deformed, in a contrast phase, scanned; with full truth.

Every CT is another body: turned, stretched, bent by smooth fields, with another rim of fat, other
contents of stomach and bowel, another mixture of fat and muscle in between. Attenuation,
scanner and failures are those of the procedural phantoms.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from atlas_core.errors import InvalidInput
from atlas_core.phantoms.anatomy import Float32Array, Float64Array, SmoothField, Tissue
from atlas_core.phantoms.failures import Failure
from atlas_core.phantoms.organs import Kind
from atlas_core.phantoms.people import SPACING_MM, Anatomy
from atlas_core.phantoms.scanner import (
    ORIENTATIONS,
    SLAB_SLICES,
    Phantom,
    PhantomGrid,
    Scan,
    acquire,
    as_file,
    sample_attenuation,
    sample_phase,
    table_plate,
)

DRAWN_KINDS = (
    Kind.CHILD,
    Kind.SITUS_INVERSUS,
    Kind.WRONG_ORIENTATION,
    Kind.CROPPED,
    Kind.MOTION,
    Kind.THICK_SLICES,
    Kind.LOW_CONTRAST,
    Kind.METAL,
)
"""Failures that do not ask for another anatomy."""

SHORT_SHARE = 0.4
"""Ordinary CTs that show a part of the anatomy only: abdomens end somewhere."""

SKIN_MM = 2.0


@dataclass(frozen=True)
class _Bend:
    """Smooth fields that move z, y and x by some millimetres."""

    fields: tuple[SmoothField, SmoothField, SmoothField]
    mm: float


@dataclass(frozen=True)
class _Body:
    """Everything random about the body.

    Attributes:
        matrix: from the CT's millimetres to the anatomy's, rows and columns z, y, x.
        bends: a slow and a quick one.
        rim_mm: fat added around the anatomy.
        mixture: slow and quick field of muscle against fat, muscle above `lean`.
        gas, gas_above: field and threshold of gas in stomach and bowel.
        texture: unevenness inside tissues.
    """

    matrix: Float64Array
    bends: tuple[_Bend, ...]
    rim_mm: float
    mixture: tuple[SmoothField, SmoothField]
    lean: float
    gas: SmoothField
    gas_above: float
    texture: SmoothField


def draw_phantom(
    anatomy: Anatomy,
    seed: int,
    kind: Kind = Kind.ORDINARY,
    grid: PhantomGrid | None = None,
) -> Phantom:
    """The CT that `seed` draws from `anatomy`, with the truth of the phantoms' organs.

    Raises:
        InvalidInput: a kind that no label map tells how to draw.
    """
    if kind not in (Kind.ORDINARY, *DRAWN_KINDS):
        raise InvalidInput(
            "this kind of phantom cannot be drawn from label maps",
            expected=", ".join(k.value for k in (Kind.ORDINARY, *DRAWN_KINDS)),
            got=kind.value,
        )
    grid = grid or PhantomGrid()
    body_rng, scan_rng, noise, failing = (
        np.random.Generator(np.random.PCG64(child))
        for child in np.random.SeedSequence((seed, 1)).spawn(4)
    )
    failure = Failure.sample(failing, kind)
    size = failure.size or 1.0
    body = _sample_body(body_rng, size)
    phase = sample_phase(scan_rng, kind)
    scan = _sample_scan(scan_rng, anatomy, body, phase_hu=sample_attenuation(scan_rng, phase),
                        grid=grid, whole=kind is not Kind.ORDINARY)  # fmt: skip
    x, y, z = scan.axes
    scan = replace(scan, axes=(x, y, failure.slices(z)), hu=failure.attenuation(scan.hu))
    tissue = failure.tissue(_draw(anatomy, body, scan))
    ct = acquire(scan, tissue, body.texture, size, failure, noise)
    return as_file(scan, ct, tissue, failure, kind, phase, seed)


def _sample_body(rng: np.random.Generator, size: float) -> _Body:
    turn = np.eye(3)
    for i, j, most in ((1, 2, 0.2), (0, 1, 0.12), (0, 2, 0.12)):
        angle = rng.uniform(-most, most)
        plane = np.eye(3)
        plane[i, i] = plane[j, j] = np.cos(angle)
        plane[i, j], plane[j, i] = -np.sin(angle), np.sin(angle)
        turn = turn @ plane
    stretch = np.diag(rng.uniform(0.82, 1.22, 3))
    bends = []
    for step_mm, low, high in ((80.0, 4.0, 12.0), (36.0, 1.0, 4.0)):
        z, y, x = (SmoothField.sample(rng, step_mm) for _ in range(3))
        bends.append(_Bend((z, y, x), float(rng.uniform(low, high))))
    return _Body(
        matrix=turn @ stretch / size,
        bends=tuple(bends),
        rim_mm=float(rng.uniform(0.0, 32.0)),
        mixture=(SmoothField.sample(rng, 20.0), SmoothField.sample(rng, 10.0)),
        lean=float(rng.uniform(-0.8, 0.8)),
        gas=SmoothField.sample(rng, 24.0),
        gas_above=float(rng.uniform(0.3, 1.8)),
        texture=SmoothField.sample(rng, 9.0),
    )


def _sample_scan(
    rng: np.random.Generator,
    anatomy: Anatomy,
    body: _Body,
    *,
    phase_hu: tuple[Float32Array, Float32Array],
    grid: PhantomGrid,
    whole: bool,
) -> Scan:
    scale = np.abs(np.diag(np.linalg.inv(body.matrix)))
    extent_mm = np.array(anatomy.tissue.shape) * SPACING_MM * scale
    _, deep, wide = (
        (side.stop - 1 - side.start) * SPACING_MM * along
        for side, along in zip(anatomy.box, scale, strict=True)
    )
    view = float(np.clip((wide + 2 * body.rim_mm) * rng.uniform(1.04, 1.18), 150.0, 500.0))
    slice_mm = float(np.round(rng.uniform(2.5, 3.2), 2))
    codes = str(rng.choice([c for c, _ in ORIENTATIONS], p=[p for _, p in ORIENTATIONS]))
    length, start = float(extent_mm[0]), 0.0
    if rng.random() < SHORT_SHARE and not whole:
        length *= rng.uniform(0.06, 0.7)
        start = float(rng.uniform(0.0, extent_mm[0] - length))
    across = (np.arange(grid.columns, dtype=np.float64) + 0.5) * (view / grid.columns) - view / 2
    x, y = (across + float(rng.uniform(-8.0, 8.0)) for _ in range(2))
    slice_mm = slice_mm if grid.slice_mm is None else grid.slice_mm
    count = max(2, int(length / slice_mm))
    z = (np.arange(count, dtype=np.float64) + 0.5) * slice_mm + (start - float(extent_mm[0]) / 2)
    hu, texture_hu = phase_hu
    return Scan(
        axes=(x, y, z),
        axis_codes=grid.axis_codes or codes,
        origin_mm=np.round(rng.uniform(-250.0, 250.0, 3), 1),
        table_mm=-deep / 2 - body.rim_mm - float(rng.uniform(-4.0, 12.0)),
        hu=hu,
        texture_hu=texture_hu,
        blur_mm=float(rng.uniform(0.7, 1.3)),
        noise_hu=float(rng.uniform(5.0, 20.0)),
        coarse_noise_hu=0.0,
        padding_hu=int(rng.choice((-1024, -2000, -3024), p=(0.6, 0.2, 0.2))),
    )


def _draw(anatomy: Anatomy, body: _Body, scan: Scan) -> NDArray[np.uint8]:
    """The tissue of every voxel, ``[z, y, x]``."""
    x, y, z = scan.axes
    tissue = np.empty((len(z), len(y), len(x)), np.uint8)
    plate = table_plate(y, x, scan.table_mm)
    middle = _middle(anatomy)
    for start in range(0, len(z), SLAB_SLICES):
        part = slice(start, start + SLAB_SLICES)
        slab = _slab(anatomy, body, middle, z[part], y, x)
        slab[(slab == Tissue.AIR) & plate] = Tissue.TABLE
        tissue[part] = slab
    return tissue


def _middle(anatomy: Anatomy) -> tuple[float, float, float]:
    """Of the body, in voxels: x and y of the box around it, z of the grid."""
    _, y, x = ((side.start + side.stop - 1) / 2 for side in anatomy.box)
    return (len(anatomy.tissue) - 1) / 2, y, x


def _slab(
    anatomy: Anatomy,
    body: _Body,
    middle: tuple[float, float, float],
    z: Float64Array,
    y: Float64Array,
    x: Float64Array,
) -> NDArray[np.uint8]:
    axes = (z[:, None, None], y[None, :, None], x[None, None, :])
    indices = []
    for axis in range(3):
        where = sum(
            (weight * at for weight, at in zip(body.matrix[axis], axes, strict=True)), np.float64(0)
        )
        for bend in body.bends:
            where = where + np.float32(bend.mm) * bend.fields[axis].on(z, y, x)
        indices.append(np.rint(where / SPACING_MM + middle[axis]).astype(np.int32))
    shape = anatomy.tissue.shape
    beside = np.zeros(indices[0].shape, np.float32)
    for axis in (1, 2):  # beyond the label map: as far from the body as its edge, and what is more
        over = np.maximum(-indices[axis], indices[axis] - (shape[axis] - 1))
        beside += np.maximum(over, 0) * np.float32(SPACING_MM)
    at = tuple(np.clip(index, 0, n - 1) for index, n in zip(indices, shape, strict=True))
    tissue = np.asarray(anatomy.tissue[at])
    away = anatomy.outside_mm[at] + beside
    tissue[(beside > 0) & (away > 0)] = Tissue.AIR

    rim = (away > 0) & (away <= body.rim_mm)
    tissue[rim] = np.where(away[rim] > body.rim_mm - SKIN_MM, Tissue.SKIN, Tissue.FAT)
    slow, quick = (field.on(z, y, x) for field in body.mixture)
    lean = (tissue == Tissue.FAT) & (away == 0) & (slow + np.float32(0.6) * quick > body.lean)
    tissue[lean] = Tissue.MUSCLE
    gas = body.gas.on(z, y, x) > body.gas_above
    tissue[gas & (tissue == Tissue.STOMACH_FLUID)] = Tissue.STOMACH_GAS
    tissue[gas & ((tissue == Tissue.BOWEL_FLUID) | (tissue == Tissue.FAECES))] = Tissue.BOWEL_GAS
    return tissue
