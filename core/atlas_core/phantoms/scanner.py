"""Procedural abdominal CTs with full truth, for tests, demonstrations and the demo models.

A phantom has a body with skin, fat, muscle, spine, ribs, bowel and vessels, and the nine organs of
`PHANTOM_ORGANS`; attenuation follows the contrast phase; a scanner blurs it and adds noise.
Hard cases carry one of the irregularities that the paper's Fig. 5 names, or a failure that real
archives hold (`atlas_core.phantoms.failures`), and say which.

Everything follows from one seed, on one platform to the byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from atlas_core.errors import InvalidInput
from atlas_core.geometry import VolumeGeometry
from atlas_core.organs import OrganScheme
from atlas_core.phantoms.anatomy import (
    Canvas,
    Float32Array,
    Float64Array,
    SmoothField,
    Tissue,
    Trunk,
)
from atlas_core.phantoms.failures import Failure
from atlas_core.phantoms.organs import PHANTOM_ORGANS, Kind, Organs, draw_patient, sample_organs


class Phase(StrEnum):
    """Contrast phase of a CT."""

    PORTAL = "portal"
    ARTERIAL = "arterial"
    PRE = "pre"
    POST = "post"
    EXCRETORY = "excretory"
    """Ten minutes after injection: contrast in the renal pelvis, organs washed out. Only the hard
    kind `other_phase` has it."""


PHASE_SHARES: Mapping[Phase, float] = {
    Phase.PORTAL: 0.44,
    Phase.ARTERIAL: 0.37,
    Phase.PRE: 0.16,
    Phase.POST: 0.03,
}
"""Shares of the phases in AbdomenAtlas-8K."""

_PHASES = (Phase.PRE, Phase.ARTERIAL, Phase.PORTAL, Phase.POST, Phase.EXCRETORY)

# Hounsfield units by phase, in the order of _PHASES: textbook means.
_HU_BY_PHASE: Mapping[Tissue, tuple[float, float, float, float, float]] = {
    Tissue.MUSCLE: (52, 58, 64, 62, 58),
    Tissue.HEART: (42, 230, 145, 115, 75),
    Tissue.ARTERY: (42, 300, 145, 115, 75),
    Tissue.PORTAL_VEIN: (42, 85, 165, 120, 78),
    Tissue.SYSTEMIC_VEIN: (40, 110, 140, 115, 76),
    Tissue.BOWEL_WALL: (40, 80, 92, 78, 60),
    Tissue.ADRENAL: (28, 75, 80, 62, 42),
    Tissue.LIVER: (56, 66, 110, 96, 74),
    Tissue.LIVER_VESSEL: (42, 78, 158, 116, 77),
    Tissue.SPLEEN: (48, 122, 122, 100, 66),
    Tissue.KIDNEY_RIGHT_CORTEX: (33, 185, 185, 160, 120),
    Tissue.KIDNEY_RIGHT_MEDULLA: (31, 85, 165, 165, 150),
    Tissue.KIDNEY_LEFT_CORTEX: (33, 185, 185, 160, 120),
    Tissue.KIDNEY_LEFT_MEDULLA: (31, 85, 165, 165, 150),
    Tissue.RENAL_PELVIS: (8, 8, 10, 60, 700),
    Tissue.STOMACH_WALL: (42, 78, 88, 74, 56),
    Tissue.AORTA: (42, 310, 150, 116, 76),
    Tissue.POSTCAVA: (40, 100, 135, 114, 75),
    Tissue.PANCREAS: (42, 108, 98, 78, 55),
    Tissue.PANCREAS_MASS: (34, 48, 58, 62, 48),
}

# The same in every phase.
_HU_FIXED: Mapping[Tissue, float] = {
    Tissue.AIR: -1000,
    Tissue.SKIN: 20,
    Tissue.FAT: -102,
    Tissue.CORTICAL_BONE: 520,
    Tissue.SPONGY_BONE: 190,
    Tissue.CARTILAGE: 95,
    Tissue.SPINAL_CANAL: 25,
    Tissue.LUNG: -850,
    Tissue.BOWEL_FLUID: 22,
    Tissue.BOWEL_GAS: -960,
    Tissue.FAECES: -20,
    Tissue.RENAL_SINUS: -80,
    Tissue.STOMACH_FLUID: 18,
    Tissue.STOMACH_GAS: -960,
    Tissue.AORTA_CALCIFICATION: 600,
    Tissue.GALL_BLADDER: 9,
    Tissue.GALL_STONE: 240,
    Tissue.TABLE: -250,
}

_HU_SPREAD: Mapping[Tissue, float] = {
    # Between patients; contrast timing varies most in the arteries, fatty livers are darker.
    Tissue.AORTA: 0.12, Tissue.ARTERY: 0.12, Tissue.HEART: 0.12, Tissue.POSTCAVA: 0.1,
    Tissue.PORTAL_VEIN: 0.1, Tissue.LIVER_VESSEL: 0.08, Tissue.LIVER: 0.1, Tissue.SPLEEN: 0.08,
    Tissue.PANCREAS: 0.1, Tissue.BOWEL_WALL: 0.12, Tissue.STOMACH_WALL: 0.12,
}  # fmt: skip

_TEXTURE_HU: Mapping[Tissue, float] = {
    # Unevenness inside a tissue, standard deviation.
    Tissue.FAT: 7, Tissue.MUSCLE: 7, Tissue.LUNG: 35, Tissue.CORTICAL_BONE: 110,
    Tissue.SPONGY_BONE: 45, Tissue.LIVER: 4, Tissue.SPLEEN: 4, Tissue.PANCREAS: 12,
    Tissue.PANCREAS_MASS: 10, Tissue.BOWEL_FLUID: 14, Tissue.BOWEL_WALL: 8, Tissue.FAECES: 90,
    Tissue.STOMACH_FLUID: 8, Tissue.HEART: 10,
}  # fmt: skip

_ORGAN_TISSUES: Mapping[str, tuple[Tissue, ...]] = {
    "aorta": (Tissue.AORTA, Tissue.AORTA_CALCIFICATION),
    "gall_bladder": (Tissue.GALL_BLADDER, Tissue.GALL_STONE),
    "kidney_left": (Tissue.KIDNEY_LEFT_CORTEX, Tissue.KIDNEY_LEFT_MEDULLA),
    "kidney_right": (Tissue.KIDNEY_RIGHT_CORTEX, Tissue.KIDNEY_RIGHT_MEDULLA),
    "liver": (Tissue.LIVER, Tissue.LIVER_VESSEL),
    "pancreas": (Tissue.PANCREAS, Tissue.PANCREAS_MASS),
    "postcava": (Tissue.POSTCAVA,),
    "spleen": (Tissue.SPLEEN,),
    "stomach": (Tissue.STOMACH_WALL, Tissue.STOMACH_FLUID, Tissue.STOMACH_GAS),
}

ORIENTATIONS = (("RAS", 0.4), ("LPS", 0.35), ("LAS", 0.15), ("IPL", 0.1))
"""NIfTI's own, DICOM's, the old Analyze one, and an axis order as in KiTS19."""

SLAB_SLICES = 48
"""Slices drawn at a time: bounds the memory of a full-size phantom."""


@dataclass(frozen=True)
class PhantomGrid:
    """Sampling of a phantom; None leaves a choice to the seed.

    Attributes:
        columns: voxels across and along a slice.
        slice_mm: distance of slices; by default drawn from 2.5 to 3.2.
        axis_codes: orientation of the file; by default drawn.
    """

    columns: int = 160
    slice_mm: float | None = None
    axis_codes: str | None = None

    def __post_init__(self) -> None:
        if not 16 <= self.columns <= 1024:
            raise InvalidInput(
                "implausible phantom grid", expected="16..1024 columns", got=self.columns
            )
        if self.slice_mm is not None and not 0.5 <= self.slice_mm <= 20:
            raise InvalidInput(
                "implausible phantom grid", expected="slices of 0.5..20 mm", got=self.slice_mm
            )
        if self.axis_codes is not None:
            _axes_of(self.axis_codes)


@dataclass(frozen=True)
class Phantom:
    """One procedural case.

    Attributes:
        ct: Hounsfield units, int16, in the file's own axis order ``[i, j, k]``.
        truth: label ids of `PHANTOM_ORGANS`, uint8, on the same grid.
    """

    ct: NDArray[np.int16]
    truth: NDArray[np.uint8]
    geometry: VolumeGeometry
    kind: Kind
    phase: Phase
    seed: int

    def volumes_ml(self, organs: OrganScheme = PHANTOM_ORGANS) -> dict[str, float]:
        """True volume of each organ in millilitres."""
        counts = np.bincount(self.truth.ravel(order="K"), minlength=256)
        return {
            organ.name: round(float(counts[organ.label]) * self.geometry.voxel_ml, 3)
            for organ in organs
        }


@dataclass(frozen=True)
class _Patient:
    """Everything random about the body, drawn before any voxel."""

    trunk: Trunk
    organs: Organs
    size: float
    warp: tuple[SmoothField, SmoothField, SmoothField]
    warp_mm: float
    ripple: tuple[SmoothField, SmoothField]
    texture: SmoothField


@dataclass(frozen=True)
class Scan:
    """Everything random about the acquisition. Axes in mm, ascending x (Right), y, z."""

    axes: tuple[Float64Array, Float64Array, Float64Array]
    axis_codes: str
    origin_mm: Float64Array
    table_mm: float
    hu: Float32Array
    texture_hu: Float32Array
    blur_mm: float
    noise_hu: float
    coarse_noise_hu: float
    padding_hu: int


def make_phantom(
    seed: int,
    kind: Kind = Kind.ORDINARY,
    phase: Phase | None = None,
    grid: PhantomGrid | None = None,
) -> Phantom:
    """The phantom of `seed`.

    Args:
        seed: everything random follows from it.
        kind: what makes it hard, if anything.
        phase: contrast phase; by default drawn with `PHASE_SHARES`.
        grid: sampling; by default about 160 × 160 × 120 voxels of 2.2 × 2.2 × 2.9 mm.
    """
    grid = grid or PhantomGrid()
    # One stream per concern, so that a finer grid or another phase leaves the body as it was.
    body, acquisition, noise, failing = (
        np.random.Generator(np.random.PCG64(child))
        for child in np.random.SeedSequence(seed).spawn(4)
    )
    failure = Failure.sample(failing, kind)
    patient = _sample_patient(body, kind)
    if failure.size is not None:
        patient = replace(patient, size=failure.size)
    phase = phase or sample_phase(acquisition, kind)
    scan = _sample_scan(acquisition, patient, kind, phase, grid)
    x, y, z = scan.axes
    scan = replace(scan, axes=(x, y, failure.slices(z)), hu=failure.attenuation(scan.hu))
    tissue = failure.tissue(_draw(patient, scan))
    ct = acquire(scan, tissue, patient.texture, patient.size, failure, noise)
    return as_file(scan, ct, tissue, failure, kind, phase, seed)


def as_file(
    scan: Scan,
    ct: NDArray[np.int16],
    tissue: NDArray[np.uint8],
    failure: Failure,
    kind: Kind,
    phase: Phase,
    seed: int,
) -> Phantom:
    """A scan ``[z, y, x]`` turned into the axes of its file, under the header that it got."""
    truth = label_table()[tissue]
    geometry = scan_geometry(scan)
    # [z, y, x] in C order is [x, y, z] in Fortran order: only a real turn copies.
    turned = (geometry.axis_map.from_canonical(volume.transpose(2, 1, 0)) for volume in (ct, truth))
    ct_file, truth_file = (np.asfortranarray(volume) for volume in turned)
    said = scan_geometry(replace(scan, axis_codes=failure.axis_codes(scan.axis_codes)))
    return Phantom(ct_file, truth_file, said, kind, phase, seed)


def _sample_patient(rng: np.random.Generator, kind: Kind) -> _Patient:
    trunk = Trunk.sample(rng)
    organs = sample_organs(rng, trunk, kind)
    return _Patient(
        trunk=trunk,
        organs=organs,
        size=float(rng.uniform(0.9, 1.08)),
        warp=(
            SmoothField.sample(rng, 75.0),
            SmoothField.sample(rng, 75.0),
            SmoothField.sample(rng, 75.0),
        ),
        warp_mm=float(rng.uniform(2.5, 4.5)),
        ripple=(SmoothField.sample(rng, 22.0), SmoothField.sample(rng, 17.0)),
        texture=SmoothField.sample(rng, 9.0),
    )


def sample_phase(rng: np.random.Generator, kind: Kind) -> Phase:
    drawn = str(rng.choice(list(PHASE_SHARES), p=list(PHASE_SHARES.values())))
    return Phase.EXCRETORY if kind is Kind.OTHER_PHASE else Phase(drawn)


def _sample_scan(
    rng: np.random.Generator, patient: _Patient, kind: Kind, phase: Phase, grid: PhantomGrid
) -> Scan:
    trunk, size = patient.trunk, patient.size
    shell = trunk.wall_mm + 1.2 * trunk.fat_mm + 6.0
    width = 2.0 * (trunk.half_width_mm + shell) * size
    view = float(np.clip(width * rng.uniform(1.04, 1.18), 300.0, 480.0))
    centre = rng.uniform(-8.0, 8.0, 2)
    bottom, top = rng.uniform(-178, -150), rng.uniform(138, 172)
    slice_mm = float(np.round(rng.uniform(2.5, 3.2), 2))
    codes = str(rng.choice([c for c, _ in ORIENTATIONS], p=[p for _, p in ORIENTATIONS]))
    origin = np.round(rng.uniform(-250.0, 250.0, 3), 1)
    hu, texture = sample_attenuation(rng, phase)
    noise_hu = rng.uniform(7.0, 17.0)
    blur_mm = float(rng.uniform(0.7, 1.2))
    padding = int(rng.choice((-1024, -2000, -3024), p=(0.6, 0.2, 0.2)))
    coarse_noise_hu = 0.0
    if kind is Kind.HEAVY_NOISE:
        # Too little dose for the patient: grain, and blotches that resampling does not average out.
        noise_hu, coarse_noise_hu = rng.uniform(50.0, 70.0), rng.uniform(28.0, 42.0)
    slice_mm = slice_mm if grid.slice_mm is None else grid.slice_mm
    across = (np.arange(grid.columns) + 0.5) * (view / grid.columns) - view / 2
    # The table lies in the lower third of the field of view: the body is centred, roughly.
    return Scan(
        axes=(
            across + centre[0],
            across + centre[1] - 6.0,
            np.arange(bottom * size, top * size, slice_mm),
        ),
        axis_codes=grid.axis_codes or codes,
        origin_mm=origin,
        table_mm=(-trunk.half_depth_mm + 7.0 - shell) * size - 5.0,
        hu=hu,
        texture_hu=texture,
        blur_mm=blur_mm,
        noise_hu=float(noise_hu),
        coarse_noise_hu=float(coarse_noise_hu),
        padding_hu=padding,
    )


def sample_attenuation(rng: np.random.Generator, phase: Phase) -> tuple[Float32Array, Float32Array]:
    """HU and texture (HU, standard deviation) by `Tissue`, for one patient."""
    hu = np.zeros(len(Tissue), dtype=np.float32)
    texture = np.full(len(Tissue), 2.0, dtype=np.float32)
    column = _PHASES.index(phase)
    for tissue in Tissue:
        mean = _HU_BY_PHASE[tissue][column] if tissue in _HU_BY_PHASE else _HU_FIXED[tissue]
        spread = _HU_SPREAD.get(tissue, 0.03) * float(np.clip(rng.standard_normal(), -2, 2))
        hu[tissue] = mean * (1.0 + spread)
        texture[tissue] = _TEXTURE_HU.get(tissue, 2.0)
    for left, right in (
        (Tissue.KIDNEY_LEFT_CORTEX, Tissue.KIDNEY_RIGHT_CORTEX),
        (Tissue.KIDNEY_LEFT_MEDULLA, Tissue.KIDNEY_RIGHT_MEDULLA),
    ):
        hu[left] = hu[right]
    # Some patients drank contrast: stomach and bowel are then bright.
    if rng.random() < 0.2:
        hu[Tissue.STOMACH_FLUID] = rng.uniform(90, 260)
        hu[Tissue.BOWEL_FLUID] = rng.uniform(90, 260)
    # Some livers are fatty.
    if rng.random() < 0.15:
        hu[Tissue.LIVER] -= rng.uniform(12, 30)
    return hu, texture


# --- drawing and scanning -------------------------------------------------------------------------


def _draw(patient: _Patient, scan: Scan) -> NDArray[np.uint8]:
    """The tissue of every voxel, ``[z, y, x]``."""
    x, y, z = (axis / patient.size for axis in scan.axes)
    tissue = np.zeros((len(z), len(y), len(x)), dtype=np.uint8)
    for start in range(0, len(z), SLAB_SLICES):
        part = slice(start, start + SLAB_SLICES)
        canvas = _canvas(patient, (z[part], y, x), tissue[part])
        plate = table_plate(y, x, scan.table_mm / patient.size)
        canvas.tissue[:, plate] = Tissue.TABLE
        draw_patient(canvas, patient.trunk, patient.organs)
    return tissue


def _canvas(
    patient: _Patient,
    axes: tuple[Float64Array, Float64Array, Float64Array],
    tissue: NDArray[np.uint8],
) -> Canvas:
    limit = 3.0 * patient.warp_mm  # beyond three standard deviations the warp is cut
    bent = []
    for field, axis, shape in zip(
        patient.warp, (2, 1, 0), ((1, 1, -1), (1, -1, 1), (-1, 1, 1)), strict=True
    ):
        shift = np.clip(field.on(*axes) * np.float32(patient.warp_mm), -limit, limit)
        bent.append(shift + axes[axis].astype(np.float32).reshape(shape))
    ripple = (patient.ripple[0].on(*axes), patient.ripple[1].on(*axes))
    return Canvas(axes, bent[0], bent[1], bent[2], ripple, limit, tissue)


def table_plate(y: Float64Array, x: Float64Array, top_mm: float) -> NDArray[np.bool_]:
    """The couch: a curved plate behind the patient, ``[y, x]``. It is outside the warp."""
    surface = top_mm - 18.0 + np.square(x / 200.0) * 30.0
    depth = surface[None, :] - y[:, None]
    return np.asarray((depth > 0) & (depth < 14.0) & (np.abs(x)[None, :] < 210.0))


def acquire(
    scan: Scan,
    tissue: NDArray[np.uint8],
    texture: SmoothField,
    size: float,
    failure: Failure,
    rng: np.random.Generator,
) -> NDArray[np.int16]:
    """The simulated scan of `tissue`: blurred, noisy HU, int16 ``[z, y, x]``.

    Args:
        texture: unevenness inside tissues; it is as large as the patient is.
        size: of the patient against a standard adult.
    """
    x, y, z = scan.axes
    pixel_mm = float(x[1] - x[0])
    slice_mm = float(z[1] - z[0])
    sigma = (0.35 * 2.5 / slice_mm, scan.blur_mm / pixel_mm, scan.blur_mm / pixel_mm)
    halo = int(np.ceil(4.0 * sigma[0])) + 1
    inside = _field_of_view(x, y)
    ct = np.empty(tissue.shape, dtype=np.int16)
    for start in range(0, len(z), SLAB_SLICES):
        stop = min(start + SLAB_SLICES, len(z))
        low, high = max(0, start - halo), min(len(z), stop + halo)
        hu = scan.hu[tissue[low:high]]
        uneven = texture.on(z[low:high] / size, y / size, x / size)
        hu += uneven * scan.texture_hu[tissue[low:high]]
        hu = ndimage.gaussian_filter(hu, sigma, mode="nearest", truncate=4.0)[
            start - low : stop - low
        ]
        hu = failure.moved(hu, pixel_mm)
        if failure.metal is not None:
            hu += failure.metal.hu(z[start:stop], y, x)
        hu += _noise(rng, hu.shape, scan.noise_hu, FINE_GRAIN)
        if scan.coarse_noise_hu:
            hu += _noise(rng, hu.shape, scan.coarse_noise_hu, COARSE_GRAIN)
        np.clip(hu, -1024, 3071, out=hu)
        ct[start:stop] = np.rint(hu)
    ct[:, ~inside] = scan.padding_hu
    return ct


FINE_GRAIN, COARSE_GRAIN = 0.6, 1.8
"""Grain of noise (sigma, voxels): that of a soft kernel, and that of too low a dose."""


def _noise(
    rng: np.random.Generator, shape: tuple[int, ...], sigma_hu: float, grain: float
) -> Float32Array:
    """Noise of the given standard deviation and grain: correlated within a slice only, so that it
    does not depend on how a volume is cut into slabs."""
    white = rng.standard_normal(shape, dtype=np.float32)
    smooth = ndimage.gaussian_filter(white, (0, grain, grain), mode="wrap", truncate=3.0)
    impulse = np.zeros(33)
    impulse[16] = 1.0
    taps = ndimage.gaussian_filter1d(impulse, grain, truncate=3.0)
    # Smoothing in two directions lowers the deviation by the sum of the squared taps.
    return np.asarray(smooth * np.float32(sigma_hu / np.square(taps).sum()), dtype=np.float32)


def _field_of_view(x: Float64Array, y: Float64Array) -> NDArray[np.bool_]:
    """The circle that a scanner reconstructs, ``[y, x]``."""
    radius = 0.5 * (x[-1] - x[0]) + 0.5 * (x[1] - x[0])
    return np.asarray(
        np.square(x - x.mean())[None, :] + np.square(y - y.mean())[:, None] <= radius**2
    )


def label_table() -> NDArray[np.uint8]:
    """Label id by `Tissue`."""
    table = np.zeros(len(Tissue), dtype=np.uint8)
    for organ, tissues in _ORGAN_TISSUES.items():
        table[list(tissues)] = PHANTOM_ORGANS[organ].label
    return table


# --- orientation ----------------------------------------------------------------------------------


def _axes_of(axis_codes: str) -> tuple[tuple[int, bool], ...]:
    """World axis and direction (True: against R, A or S) of each file axis."""
    axes = []
    for letter in axis_codes:
        for axis, pair in enumerate(("RL", "AP", "SI")):
            if letter in pair:
                axes.append((axis, letter == pair[1]))
    if sorted(axis for axis, _ in axes) != [0, 1, 2] or len(axis_codes) != 3:
        raise InvalidInput("malformed orientation", expected="RAS, LPS, …", got=axis_codes)
    return tuple(axes)


def scan_geometry(scan: Scan) -> VolumeGeometry:
    """The file's grid: axes as `axis_codes` says, placed where the scanner put the patient."""
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1.0
    matrix[:3, 3] = scan.origin_mm
    shape = []
    for file_axis, (world_axis, back) in enumerate(_axes_of(scan.axis_codes)):
        axis = scan.axes[world_axis]
        step = float(axis[1] - axis[0])
        matrix[world_axis, file_axis] = -step if back else step
        matrix[world_axis, 3] += axis[-1] if back else axis[0]
        shape.append(len(axis))
    return VolumeGeometry.from_array(tuple(shape), matrix)
