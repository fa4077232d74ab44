"""What real archives hold besides ordinary abdomens: children, mirrored patients, scans that went
wrong. Each failure changes the patient, the scan, the picture or the header of one phantom.

Lengths in mm; axes as in `atlas_core.phantoms.anatomy`: x to the Right, y Anterior, z Superior.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atlas_core.phantoms.anatomy import Float32Array, Float64Array, Tissue
from atlas_core.phantoms.organs import Kind

GREY_HU = 45.0
"""What soft tissue is drawn towards in a scan of low contrast: blood and muscle without any."""

SOFT_HU = (-20.0, 350.0)

CHILD_SCALE = (0.55, 0.7)

STREAKS = 14
"""Waves around the implant that make its streaks; so many that no two look alike."""


@dataclass(frozen=True)
class Metal:
    """An implant: a rod along z that saturates the scanner, and streaks around it.

    Attributes:
        centre: x, y, z.
        half_mm: half its length.
        waves: per wave around it periods, phase and share ``[3, n]``.
    """

    centre: Float64Array
    half_mm: float
    waves: Float64Array

    RADIUS_MM = 7.0
    REACH_MM = 90.0
    HU = 500.0

    def hu(self, z: Float64Array, y: Float64Array, x: Float64Array) -> Float32Array:
        """What it adds to the picture on the grid of these axes, ``[z, y, x]``."""
        dx, dy = x[None, :] - self.centre[0], y[:, None] - self.centre[1]
        angle, radius = np.arctan2(dy, dx)[..., None], np.hypot(dx, dy)
        periods, phases, shares = self.waves
        streaks = (np.cos(periods * angle + phases) * shares).sum(axis=-1)
        plane = self.HU * streaks * np.exp(-radius / self.REACH_MM)
        plane[radius < self.RADIUS_MM] = 3000.0
        along = np.abs(z - self.centre[2]) < self.half_mm
        return np.asarray(along[:, None, None] * plane[None], np.float32)


@dataclass(frozen=True)
class Failure:
    """How a phantom differs from an ordinary one; the defaults change nothing.

    Attributes:
        size: of the patient against a standard adult; None: as drawn.
        mirrored: situs inversus, all organs on the other side.
        wrong_axis: world axis (0: x, 2: z) that the file's header has the wrong way round.
        kept: part of the usual scan range that was scanned, from below, 0..1.
        slice_mm: least distance of slices.
        contrast: of soft tissues, against the usual one.
        motion_mm: how far the patient moved to either side while a slice was taken.
    """

    size: float | None = None
    mirrored: bool = False
    wrong_axis: int | None = None
    kept: tuple[float, float] = (0.0, 1.0)
    slice_mm: float = 0.0
    contrast: float = 1.0
    motion_mm: float = 0.0
    metal: Metal | None = None

    @classmethod
    def sample(cls, rng: np.random.Generator, kind: Kind) -> Failure:
        """The failure of a phantom of this kind; none for the kinds that differ in anatomy only."""
        match kind:
            case Kind.CHILD:
                return cls(size=float(rng.uniform(*CHILD_SCALE)))
            case Kind.SITUS_INVERSUS:
                return cls(mirrored=True)
            case Kind.WRONG_ORIENTATION:
                return cls(wrong_axis=int(rng.choice((0, 2))))
            case Kind.CROPPED:
                length = float(rng.uniform(0.3, 0.5))
                low = float(rng.uniform(0.0, 1.0 - length))
                return cls(kept=(low, low + length))
            case Kind.THICK_SLICES:
                return cls(slice_mm=float(np.round(rng.uniform(8.0, 12.0), 1)))
            case Kind.LOW_CONTRAST:
                return cls(contrast=float(rng.uniform(0.12, 0.25)))
            case Kind.MOTION:
                return cls(motion_mm=float(rng.uniform(9.0, 15.0)))
            case Kind.METAL:
                return cls(metal=_sample_metal(rng))
            case _:
                return cls()

    def slices(self, z: Float64Array) -> Float64Array:
        """The slices that are left of the usual ones at `z`, at least one."""
        if self.kept == (0.0, 1.0) and self.slice_mm <= z[1] - z[0]:
            return z  # to the bit
        low, high = (z[0] + share * (z[-1] - z[0]) for share in self.kept)
        step = max(self.slice_mm, float(z[1] - z[0]))
        return np.arange(low, max(high, low + step / 2), step)

    def attenuation(self, hu: Float32Array) -> Float32Array:
        """HU by `Tissue`, in this scan."""
        if self.contrast == 1.0:
            return hu  # to the bit
        soft = (hu > SOFT_HU[0]) & (hu < SOFT_HU[1])
        return np.where(soft, GREY_HU + self.contrast * (hu - GREY_HU), hu).astype(np.float32)

    def tissue(self, tissue: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The patient ``[z, y, x]`` with this anatomy; what lies on the left is called left."""
        if not self.mirrored:
            return tissue
        return np.asarray(_OTHER_SIDE[tissue[:, :, ::-1]])

    def moved(self, hu: Float32Array, pixel_mm: float) -> Float32Array:
        """The picture ``[z, y, x]`` of a patient that moved: three positions in one."""
        step = round(self.motion_mm / pixel_mm)
        if not step:
            return hu
        positions = [np.roll(hu, shift, axis=1) for shift in (-step, 0, step)]
        return np.asarray(np.mean(positions, axis=0), np.float32)

    def axis_codes(self, codes: str) -> str:
        """What the header says of axes that are `codes`."""
        if self.wrong_axis is None:
            return codes
        pair = ("RL", "AP", "SI")[self.wrong_axis]
        return codes.translate(str.maketrans(pair, pair[::-1]))


def _sample_metal(rng: np.random.Generator) -> Metal:
    shares = rng.uniform(0.2, 1.0, STREAKS)
    return Metal(
        centre=np.array([rng.uniform(-20, 20), rng.uniform(-80, -55), rng.uniform(-40, 60)]),
        half_mm=float(rng.uniform(35, 60)),
        waves=np.array(
            [
                rng.integers(4, 40, STREAKS),
                rng.uniform(0, 2 * np.pi, STREAKS),
                shares / shares.sum(),
            ]
        ),
    )


def _other_side() -> NDArray[np.uint8]:
    table = np.arange(len(Tissue), dtype=np.uint8)
    for part in ("CORTEX", "MEDULLA"):
        left, right = Tissue[f"KIDNEY_LEFT_{part}"], Tissue[f"KIDNEY_RIGHT_{part}"]
        table[[left, right]] = right, left
    return table


_OTHER_SIDE = _other_side()
"""`Tissue` by `Tissue` in a mirror: organs that come in pairs change names."""
