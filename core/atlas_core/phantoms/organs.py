"""The organs of a procedural abdomen: their standard shapes, how they vary, how they are drawn.

Positions are in the standard patient of `phantom_anatomy` (mm; x Right, y Anterior, z Superior).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.phantoms.anatomy import (
    Canvas,
    Ellipsoid,
    Float32Array,
    Float64Array,
    Pose,
    Tissue,
    Trunk,
    Tube,
    draw_trunk,
    smooth_tube,
    union,
    without,
)

PHANTOM_ORGANS = ABDOMEN_ATLAS
"""Every phantom has these, whatever the organs of the atlas are that it is imported into."""


class Kind(StrEnum):
    """What makes a case hard (Fig. 5), or ordinary."""

    ORDINARY = "ordinary"
    ENLARGED_GALL_BLADDER = "enlarged_gall_bladder"
    STOMACH_GAS = "stomach_gas"
    ENLARGED_PANCREAS_TAIL = "enlarged_pancreas_tail"
    MISSING_KIDNEY = "missing_kidney"
    OTHER_PHASE = "other_phase"
    HEAVY_NOISE = "heavy_noise"
    CHILD = "child"
    SITUS_INVERSUS = "situs_inversus"
    WRONG_ORIENTATION = "wrong_orientation"
    """The file's header has one axis the wrong way round."""
    CROPPED = "cropped"
    MOTION = "motion"
    THICK_SLICES = "thick_slices"
    LOW_CONTRAST = "low_contrast"
    METAL = "metal"


HARD_KINDS = (
    Kind.ENLARGED_GALL_BLADDER,
    Kind.STOMACH_GAS,
    Kind.ENLARGED_PANCREAS_TAIL,
    Kind.MISSING_KIDNEY,
    Kind.OTHER_PHASE,
    Kind.HEAVY_NOISE,
)
"""Irregularities that the paper's Fig. 5 names."""

TAIL_KINDS = tuple(kind for kind in Kind if kind is not Kind.ORDINARY)
"""These, and the failures that real archives hold; see `failures`."""


@dataclass(frozen=True)
class Kidney:
    """One kidney with its fat, its sinus and its vessels."""

    body: Ellipsoid
    bulge: Ellipsoid
    sinus: Ellipsoid
    pelvis: Ellipsoid
    artery: Tube
    vein: Tube
    left: bool


@dataclass(frozen=True)
class Stomach:
    """A bent bag: `outline` is its outer surface; gas lies in front of `gas_level_mm`."""

    outline: Tube
    wall_mm: float
    gas_level_mm: float


@dataclass(frozen=True)
class Bowel:
    """A stretch of bowel: gas lies in front of `gas_level_mm` (relative to the axis, per point)."""

    path: Tube
    wall_mm: float
    gas_level_mm: Float64Array
    haustra_mm: float
    content: Tissue


@dataclass(frozen=True)
class Organs:
    """Every organ of one patient."""

    liver: tuple[Ellipsoid, Ellipsoid]
    hilum: Ellipsoid
    liver_vessels: tuple[Tube, ...]
    gall_bladder: Ellipsoid
    gall_stones: tuple[Ellipsoid, ...]
    spleen: Ellipsoid
    spleen_hollow: Ellipsoid
    kidneys: tuple[Kidney, ...]
    stomach: Stomach
    pancreas: Tube
    pancreas_mass: Ellipsoid | None
    aorta: Tube
    calcified: bool
    postcava: Tube
    arteries: tuple[Tube, ...]
    portal_veins: tuple[Tube, ...]
    systemic_veins: tuple[Tube, ...]
    adrenals: tuple[Tube, ...]
    muscles: tuple[Tube, ...]
    oesophagus: Tube
    heart: Ellipsoid
    bowel: tuple[Bowel, ...]


# --- sampling -------------------------------------------------------------------------------------


def sample_organs(rng: np.random.Generator, trunk: Trunk, kind: Kind) -> Organs:
    """The organs of one random patient of the given kind."""
    vessels = Pose.sample(rng, (0, -30, 0), shift_mm=3.0, turn_deg=2.0, size=0.05)
    liver_pose = Pose.sample(rng, (70, 0, 45), shift_mm=5.0, turn_deg=5.0, size=0.09)
    spleen_pose = Pose.sample(rng, (-95, -35, 50), shift_mm=5.0, size=0.14)
    pancreas, mass = _sample_pancreas(rng, kind)
    liver_vessels = tuple(liver_pose.tube(points, radii) for points, radii in _LIVER_VESSELS)
    return Organs(
        liver=(
            liver_pose.ellipsoid((74, -4, 38), (66, 76, 84), (0, 8, 0)),
            liver_pose.ellipsoid((8, 44, 66), (66, 36, 36), (0, 12, 0)),
        ),
        hilum=liver_pose.ellipsoid((24, 6, 4), (36, 34, 40)),
        liver_vessels=liver_vessels,
        gall_bladder=_sample_gall_bladder(rng, liver_pose, kind),
        gall_stones=_sample_gall_stones(rng, liver_pose),
        spleen=spleen_pose.ellipsoid((-94, -32, 46), (42, 56, 60), (-18, 0, 0)),
        spleen_hollow=spleen_pose.ellipsoid((-44, 4, 54), (38, 46, 70)),
        kidneys=_sample_kidneys(rng, kind),
        stomach=_sample_stomach(rng, kind),
        pancreas=pancreas,
        pancreas_mass=mass,
        aorta=_sample_aorta(rng, trunk, vessels),
        calcified=bool(rng.random() < 0.35),
        postcava=_sample_postcava(rng, trunk, vessels),
        arteries=tuple(vessels.tube(points, radii) for points, radii in _ARTERIES),
        portal_veins=tuple(vessels.tube(points, radii) for points, radii in _PORTAL_VEINS),
        systemic_veins=tuple(vessels.tube(points, radii) for points, radii in _SYSTEMIC_VEINS),
        adrenals=tuple(vessels.tube(points, radii) for points, radii in _ADRENALS),
        muscles=_sample_muscles(rng),
        oesophagus=vessels.tube([(-6, -30, 200), (-12, -22, 130), (-38, -8, 92)], [8, 8, 9]),
        heart=Pose.sample(rng, (-25, 25, 140)).ellipsoid((-22, 26, 138), (62, 50, 46)),
        bowel=(*_sample_small_bowel(rng), _sample_duodenum(rng), _sample_colon(rng)),
    )


_ARTERIES = (
    ([(-8, -24, 32), (-6, -4, 34), (14, 4, 32), (30, 6, 28)], [4, 3.5, 3, 2.5]),  # celiac, hepatic
    ([(-6, -6, 34), (-40, -16, 36), (-82, -26, 44)], [3, 2.5, 2.5]),  # splenic
    ([(-8, -22, 18), (-4, 2, 4), (-2, 14, -40), (4, 18, -110)], [4, 4, 3.5, 2.5]),  # mesenteric
    ([(-8, -30, -108), (-26, -34, -145), (-46, -30, -200)], [7, 6.5, 6]),  # left iliac
    ([(-6, -30, -108), (16, -34, -145), (40, -30, -200)], [7, 6.5, 6]),  # right iliac
)
_PORTAL_VEINS = (
    ([(6, 10, 2), (18, 10, 16), (34, 10, 34), (52, 8, 44)], [7, 7, 7, 5]),  # portal
    ([(6, 10, 2), (-30, 0, 18), (-70, -20, 36)], [6, 5, 4.5]),  # splenic
    ([(6, 10, 2), (8, 18, -40), (12, 22, -110)], [6, 5.5, 3.5]),  # mesenteric
)
_SYSTEMIC_VEINS = (
    ([(16, -26, -112), (28, -38, -150), (46, -34, -200)], [8, 7.5, 7]),  # right iliac
    ([(14, -26, -112), (-18, -40, -150), (-40, -36, -200)], [8, 7.5, 7]),  # left iliac
)
_ADRENALS = (
    ([(34, -32, 52), (38, -40, 36)], [2.4, 3.0]),
    ([(40, -30, 36), (37, -38, 44)], [2.0, 2.6]),
    ([(-34, -26, 50), (-40, -36, 32)], [2.6, 3.0]),
    ([(-48, -30, 34), (-38, -32, 44)], [2.2, 2.6]),
)
_LIVER_VESSELS = (
    ([(26, -6, 94), (60, -14, 78), (96, -22, 56)], [6, 4.5, 2.5]),  # right hepatic vein
    ([(24, 0, 94), (42, 22, 74), (58, 40, 44)], [5.5, 4, 2.5]),  # middle
    ([(20, 4, 94), (4, 26, 82), (-14, 44, 72)], [5, 4, 2.5]),  # left
    ([(40, 8, 36), (74, -6, 44), (104, -20, 40)], [6, 4.5, 2.5]),  # right portal branch
    ([(70, -4, 44), (92, 16, 62), (104, 24, 74)], [4, 3.5, 2.5]),
    ([(40, 8, 36), (26, 30, 58), (6, 46, 66)], [5, 4.5, 2.5]),  # left portal branch
)


def _sample_gall_bladder(rng: np.random.Generator, liver: Pose, kind: Kind) -> Ellipsoid:
    enlarge = float(rng.uniform(1.75, 2.2)) if kind is Kind.ENLARGED_GALL_BLADDER else 1.0
    pose = Pose.sample(rng, (46, 40, 2), shift_mm=4.0, turn_deg=12.0, size=0.13, enlarge=enlarge)
    radii, tilt = (15.0, 17.0, 27.0), (-38.0, 10.0, 0.0)
    # It hangs from the liver: it goes along when the liver lies differently.
    shape = pose.ellipsoid((46, 42, 0), radii, tilt)
    down = np.array([4.0, 8.0, -20.0]) * (enlarge - 1.0)
    return Ellipsoid(shape.centre + liver.shift + down, shape.radii, shape.rotation)


def _sample_gall_stones(rng: np.random.Generator, liver: Pose) -> tuple[Ellipsoid, ...]:
    count = int(rng.choice((0, 1, 3), p=(0.85, 0.1, 0.05)))
    return tuple(
        Ellipsoid(
            np.array([46.0, 34.0, -8.0]) + liver.shift + rng.uniform(-5, 5, 3),
            np.full(3, rng.uniform(2.0, 4.5)),
            np.eye(3),
        )
        for _ in range(count)
    )


def _sample_kidneys(rng: np.random.Generator, kind: Kind) -> tuple[Kidney, ...]:
    missing_left = bool(rng.random() < 0.5)
    kidneys = []
    for left in (False, True):
        # The remaining kidney grows when the other is gone.
        enlarge = 1.14 if kind is Kind.MISSING_KIDNEY else 1.0
        kidney = _sample_kidney(rng, left, enlarge)
        if kind is not Kind.MISSING_KIDNEY or left != missing_left:
            kidneys.append(kidney)
    return tuple(kidneys)


def _sample_kidney(rng: np.random.Generator, left: bool, enlarge: float) -> Kidney:
    s = -1.0 if left else 1.0
    z = 6.0 if left else -8.0
    pose = Pose.sample(rng, (60 * s, -42, z), shift_mm=4.5, turn_deg=8.0, size=0.1, enlarge=enlarge)
    # The upper pole leans to the spine, the hilum looks forward and inward.
    tilt = (8.0, -12.0 * s, 28.0 * s)
    hilum_x = 44 * s
    return Kidney(
        body=pose.ellipsoid((60 * s, -42, z), (28, 25, 52), tilt),
        bulge=pose.ellipsoid((64 * s, -46, z - 6), (25, 25, 42), tilt),
        sinus=pose.ellipsoid((50 * s, -34, z), (15, 11, 22), tilt),
        pelvis=pose.ellipsoid((46 * s, -31, z - 2), (9, 5, 10), tilt),
        artery=smooth_tube(
            [(-8, -28, z + 6), (20 * s, -34, z + 4), *pose.place([(hilum_x, -34, z + 4)]).tolist()],
            [3.2, 2.8, 2.6],
        ),
        vein=smooth_tube(
            [(16, -20, z + 8), (14 * s, -14, z + 6), *pose.place([(hilum_x, -29, z)]).tolist()],
            [5.0, 4.6, 4.2],
        ),
        left=left,
    )


def _sample_stomach(rng: np.random.Generator, kind: Kind) -> Stomach:
    gas = kind is Kind.STOMACH_GAS
    filling = float(rng.uniform(1.32, 1.5)) if gas else float(rng.uniform(0.78, 1.12))
    pose = Pose.sample(rng, (-50, 15, 50), shift_mm=5.0, turn_deg=6.0, size=0.07)
    points = [(-52, -16, 90), (-62, 4, 66), (-60, 34, 36), (-36, 52, 8), (-4, 52, -4), (22, 38, 4)]
    radii = np.array([27.0, 33.0, 29.0, 22.0, 16.0, 9.0])
    radii *= np.array([filling, filling, filling, 0.5 + 0.5 * filling, 1.0, 1.0])
    outline = pose.tube(points, radii.tolist())
    # A distended stomach holds almost only gas; an ordinary one a bubble in front of the fluid.
    level = float(rng.uniform(-26, -10)) if gas else float(rng.uniform(26, 72))
    wall = float(rng.uniform(2.5, 3.2)) if gas else float(rng.uniform(3.2, 6.0))
    return Stomach(outline, wall, level)


def _sample_pancreas(rng: np.random.Generator, kind: Kind) -> tuple[Tube, Ellipsoid | None]:
    pose = Pose.sample(rng, (-20, 8, 8), shift_mm=4.0, turn_deg=6.0, size=0.08)
    points = [
        (30, 6, -34), (32, 10, -12), (20, 20, 2), (-4, 24, 10),
        (-32, 14, 18), (-58, -6, 26), (-80, -24, 36),
    ]  # fmt: skip
    radii = np.array([11.0, 16.0, 13.0, 10.0, 10.5, 11.0, 9.0]) * rng.uniform(0.88, 1.15)
    mass = None
    if kind is Kind.ENLARGED_PANCREAS_TAIL:
        radii[4:] *= (1.15, 1.5, 1.7)
        size = float(rng.uniform(25, 33))
        place = (-72.0, -8.0, 26.0)
        mass = pose.ellipsoid(place, (size, size * 0.85, size * 0.9))
    return pose.tube(points, radii.tolist(), stretch=(1.0, 1.1, 1.0)), mass


def _sample_aorta(rng: np.random.Generator, trunk: Trunk, vessels: Pose) -> Tube:
    calibre = float(rng.uniform(9.0, 13.0))
    z = np.array([220.0, 150, 90, 40, -10, -60, -112])
    x, y = trunk.spine(z.astype(np.float32))
    side = np.array([-26.0, -24, -16, -11, -9, -8, -7]) + rng.normal(0, 2.0, z.size)
    front = np.array([4.0, 10, 20, 17 + calibre, 17 + calibre, 17 + calibre, 17 + calibre])
    points = np.column_stack([x + side, y + front, z]) + vessels.shift
    taper = np.array([1.2, 1.2, 1.15, 1.05, 0.95, 0.9, 0.85])
    return smooth_tube(points.tolist(), (calibre * taper).tolist())


def _sample_postcava(rng: np.random.Generator, trunk: Trunk, vessels: Pose) -> Tube:
    calibre = float(rng.uniform(9.5, 13.5))
    z = np.array([-116.0, -60, -10, 35, 70, 104, 122])
    x, y = trunk.spine(z.astype(np.float32))
    side = np.array([14.0, 19, 21, 23, 24, 22, 18]) + rng.normal(0, 1.5, z.size)
    front = np.array([24.0, 25, 27, 34, 46, 58, 70])
    points = np.column_stack([x + side, y + front, z]) + vessels.shift
    swell = np.array([0.85, 0.9, 1.0, 1.1, 1.15, 1.2, 1.2])
    # Veins are flat; how flat depends on how much the patient drank.
    flat = float(rng.uniform(1.0, 1.5))
    return smooth_tube(points.tolist(), (calibre * swell).tolist(), stretch=(1.0, flat, 1.0))


def _sample_muscles(rng: np.random.Generator) -> tuple[Tube, ...]:
    girth = float(rng.uniform(0.85, 1.2))
    muscles = []
    for s in (-1.0, 1.0):
        psoas = [(27 * s, -48, -6), (36 * s, -46, -60), (46 * s, -40, -120), (54 * s, -28, -210)]
        muscles.append(smooth_tube(psoas, [8 * girth, 15 * girth, 20 * girth, 23 * girth]))
        quadratus = [(56 * s, -66, -10), (64 * s, -66, -80), (76 * s, -62, -150)]
        muscles.append(
            smooth_tube(quadratus, [8 * girth, 13 * girth, 14 * girth], stretch=(1, 1.5, 1))
        )
        crus = [(13 * s, -26, 70), (14 * s, -28, 30), (16 * s, -36, -20)]
        muscles.append(smooth_tube(crus, [5.0, 6.0, 3.0]))
    return tuple(muscles)


def _sample_small_bowel(rng: np.random.Generator) -> tuple[Bowel, ...]:
    """Loops: random walks that are pulled back into the lower abdomen."""
    loops = []
    for _ in range(4):
        place = rng.uniform((-70, 10, -150), (60, 60, -50))
        heading = rng.standard_normal(3)
        points = []
        for _ in range(16):
            heading = 0.55 * heading + rng.standard_normal(3)
            pull = (np.array([-5.0, 36.0, -100.0]) - place) * np.array([0.012, 0.03, 0.016])
            step = heading + pull
            place = place + 24.0 * step / np.linalg.norm(step)
            place = np.clip(place, (-92, -8, -230), (84, 74, -34))
            points.append(place.tolist())
        radii = rng.uniform(9.5, 14.5, len(points))
        path = smooth_tube(points, radii.tolist(), pieces=3)
        gas = np.repeat(rng.choice((-4.0, 4.0, 40.0), len(points), p=(0.08, 0.14, 0.78)), 3)
        loops.append(Bowel(path, 2.6, gas[: len(path.points)], 0.0, Tissue.BOWEL_FLUID))
    return tuple(loops)


def _sample_duodenum(rng: np.random.Generator) -> Bowel:
    pose = Pose.sample(rng, (40, 5, -20), shift_mm=4.0, size=0.06)
    points = [(30, 34, 6), (50, 18, -2), (54, 4, -36), (36, -2, -58), (0, 0, -56), (-24, 6, -38)]
    path = pose.tube(points, [11, 12, 12, 11, 10, 10])
    gas = np.where(np.arange(len(path.points)) < 6, 3.0, 40.0)
    return Bowel(path, 2.6, gas, 0.0, Tissue.BOWEL_FLUID)


def _sample_colon(rng: np.random.Generator) -> Bowel:
    pose = Pose.sample(rng, (0, 30, -50), shift_mm=5.0, turn_deg=3.0, size=0.04)
    sag = float(rng.uniform(-25, 15))
    points = [
        (88, 0, -160), (96, -6, -110), (98, -8, -60), (90, 20, -40), (58, 58, -44 + 0.4 * sag),
        (10, 66, -50 + sag), (-46, 62, -36 + sag), (-90, 34, -4), (-104, -4, 4), (-106, -16, -40),
        (-104, -14, -110), (-92, -6, -170), (-60, 0, -210),
    ]  # fmt: skip
    calibre = rng.uniform(0.8, 1.15) * np.array(
        [27, 24, 22, 21, 20, 19, 18, 17, 16, 15, 15, 15, 15]
    )
    path = pose.tube(points, calibre.tolist())
    gas = np.interp(
        np.arange(len(path.points)), np.arange(0, len(path.points), 6), rng.uniform(-12, 22, 13)
    )
    return Bowel(path, 2.4, gas, 3.5, Tissue.FAECES)


# --- drawing --------------------------------------------------------------------------------------


def draw_patient(canvas: Canvas, trunk: Trunk, organs: Organs) -> None:
    """Draw everything on `canvas`, from the outside inwards: later strokes cover earlier ones."""
    wall, abdomen = draw_trunk(canvas, trunk)
    _draw_chest(canvas, organs, wall)
    for muscle in organs.muscles:
        canvas.draw_tube(muscle, Tissue.MUSCLE)
    for bowel in organs.bowel:
        _draw_bowel(canvas, bowel, abdomen)
    _draw_spleen(canvas, organs, abdomen)
    _draw_liver(canvas, organs, abdomen)
    _draw_stomach(canvas, organs.stomach, abdomen)
    for adrenal in organs.adrenals:
        canvas.draw_tube(adrenal, Tissue.ADRENAL)
    for kidney in organs.kidneys:
        _draw_kidney(canvas, kidney, abdomen)
    _draw_pancreas(canvas, organs)
    _draw_gall_bladder(canvas, organs, abdomen)
    _draw_vessels(canvas, organs)


def _draw_chest(canvas: Canvas, organs: Organs, wall: Float32Array) -> None:
    box, level = canvas.ellipsoid(organs.heart)
    chest = (level < 0) & (wall[box] < -3.0) & (canvas.tissue[box] == Tissue.LUNG)
    canvas.paint(box, chest, Tissue.HEART)
    canvas.draw_tube(organs.oesophagus, Tissue.BOWEL_WALL)


def _draw_bowel(canvas: Canvas, bowel: Bowel, abdomen: Float32Array) -> None:
    box, level, position = canvas.tube(bowel.path)
    # Haustra: the colon narrows every three centimetres or so.
    level = level + bowel.haustra_mm * (0.5 + 0.5 * np.cos(position * np.float32(np.pi / 1.7)))
    inside = abdomen[box] < -1.0
    canvas.paint(box, (level < 0) & inside, Tissue.BOWEL_WALL)
    lumen = (level < -bowel.wall_mm) & inside
    canvas.paint(box, lumen, bowel.content)
    axis = bowel.path.along(bowel.path.points[:, 1], position)
    surface = axis + bowel.path.along(bowel.gas_level_mm, position)
    canvas.paint(box, lumen & (canvas.y[box] > surface), Tissue.BOWEL_GAS)


def _draw_spleen(canvas: Canvas, organs: Organs, abdomen: Float32Array) -> None:
    box, level = canvas.ellipsoid(organs.spleen)
    _, hollow = canvas.ellipsoid(organs.spleen_hollow, box)
    level = without(level, hollow, 8.0) + 1.5 * canvas.ripple[1][box]
    canvas.paint(box, np.maximum(level, abdomen[box]) < 0, Tissue.SPLEEN)


def _draw_liver(canvas: Canvas, organs: Organs, abdomen: Float32Array) -> None:
    right, left = organs.liver
    box = canvas.box(
        np.minimum(right.reach[0], left.reach[0]), np.maximum(right.reach[1], left.reach[1])
    )
    level = union(canvas.ellipsoid(right, box)[1], canvas.ellipsoid(left, box)[1], 22.0)
    # Its lower surface looks to the left, back and down, and holds the hilum.
    _, hilum = canvas.ellipsoid(organs.hilum, box)
    level = without(level, hilum, 14.0) + 1.8 * canvas.ripple[0][box]
    inside = np.maximum(level, abdomen[box]) < 0
    canvas.paint(box, inside, Tissue.LIVER)
    for vessel in organs.liver_vessels:
        vessel_box, vessel_level, _ = canvas.tube(vessel)
        in_liver = canvas.tissue[vessel_box] == Tissue.LIVER
        canvas.paint(vessel_box, (vessel_level < 0) & in_liver, Tissue.LIVER_VESSEL)


def _draw_stomach(canvas: Canvas, stomach: Stomach, abdomen: Float32Array) -> None:
    box, level, _ = canvas.tube(stomach.outline)
    level = np.maximum(level + 1.5 * canvas.ripple[1][box], abdomen[box])
    # A thin layer of fat parts it from liver and spleen.
    around = canvas.tissue[box]
    touching = (around == Tissue.LIVER) | (around == Tissue.SPLEEN)
    canvas.paint(box, (level < 2.0) & touching, Tissue.FAT)
    canvas.paint(box, level < 0, Tissue.STOMACH_WALL)
    # Folds: the wall is of uneven thickness.
    lumen = level < -stomach.wall_mm * (1.0 + 0.25 * canvas.ripple[0][box])
    canvas.paint(box, lumen, Tissue.STOMACH_FLUID)
    gas = lumen & (canvas.y[box] > stomach.gas_level_mm)
    canvas.paint(box, gas, Tissue.STOMACH_GAS)


def _draw_kidney(canvas: Canvas, kidney: Kidney, abdomen: Float32Array) -> None:
    body, bulge = kidney.body, kidney.bulge
    box = canvas.box(*body.grown(8.0).reach)
    level = union(canvas.ellipsoid(body, box)[1], canvas.ellipsoid(bulge, box)[1], 8.0)
    level = np.maximum(level + 1.2 * canvas.ripple[0][box], abdomen[box])
    # Perirenal fat parts it from liver, spleen and bowel.
    around = canvas.tissue[box]
    soft = (around >= Tissue.BOWEL_WALL) | (around == Tissue.MUSCLE)
    canvas.paint(box, (level < 4.5) & soft & (around != Tissue.TABLE), Tissue.FAT)
    cortex = Tissue.KIDNEY_LEFT_CORTEX if kidney.left else Tissue.KIDNEY_RIGHT_CORTEX
    medulla = Tissue.KIDNEY_LEFT_MEDULLA if kidney.left else Tissue.KIDNEY_RIGHT_MEDULLA
    canvas.paint(box, level < 0, cortex)
    # Columns of cortex reach between the pyramids: a wavy border.
    canvas.paint(box, level < -8.0 + 3.0 * canvas.ripple[1][box], medulla)
    _, sinus = canvas.ellipsoid(kidney.sinus, box)
    hollow = sinus + 1.5 * canvas.ripple[1][box] < 0
    canvas.paint(box, hollow, Tissue.RENAL_SINUS)
    canvas.draw_ellipsoid(kidney.pelvis, Tissue.RENAL_PELVIS)
    canvas.draw_tube(kidney.vein, Tissue.SYSTEMIC_VEIN)
    canvas.draw_tube(kidney.artery, Tissue.ARTERY)


def _draw_pancreas(canvas: Canvas, organs: Organs) -> None:
    box, level, _ = canvas.tube(organs.pancreas)
    # Lobulated: both ripples act on its surface.
    level = level + 1.2 * canvas.ripple[0][box] + 1.2 * canvas.ripple[1][box]
    canvas.paint(box, (level < 1.5) & (level >= 0), Tissue.FAT)
    canvas.paint(box, level < 0, Tissue.PANCREAS)
    if organs.pancreas_mass is not None:
        box, level = canvas.ellipsoid(organs.pancreas_mass)
        level = level + 2.0 * canvas.ripple[0][box]
        canvas.paint(box, (level < 2.0) & (level >= 0) & _is_hollow(canvas, box), Tissue.FAT)
        canvas.paint(box, level < 0, Tissue.PANCREAS)
        canvas.paint(box, level < -4.0, Tissue.PANCREAS_MASS)


def _is_hollow(
    canvas: Canvas, box: tuple[slice, slice, slice]
) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Where bowel or stomach is, which a mass displaces."""
    around = canvas.tissue[box]
    bowel = (around >= Tissue.BOWEL_WALL) & (around <= Tissue.FAECES)
    return bowel | ((around >= Tissue.STOMACH_WALL) & (around <= Tissue.STOMACH_GAS))


def _draw_gall_bladder(canvas: Canvas, organs: Organs, abdomen: Float32Array) -> None:
    box, level = canvas.ellipsoid(organs.gall_bladder)
    level = np.maximum(level + 0.8 * canvas.ripple[1][box], abdomen[box] + 2.0)
    bowel = _is_hollow(canvas, box)
    canvas.paint(box, (level < 2.0) & bowel, Tissue.FAT)
    inside = level < 0
    canvas.paint(box, inside, Tissue.GALL_BLADDER)
    for stone in organs.gall_stones:
        stone_box, stone_level = canvas.ellipsoid(stone)
        within = canvas.tissue[stone_box] == Tissue.GALL_BLADDER
        canvas.paint(stone_box, (stone_level < 0) & within, Tissue.GALL_STONE)


def _draw_vessels(canvas: Canvas, organs: Organs) -> None:
    for vein in organs.portal_veins:
        box, level, _ = canvas.tube(vein)
        free = canvas.tissue[box] != Tissue.LIVER
        canvas.paint(box, (level < 0) & free, Tissue.PORTAL_VEIN)
    for artery in organs.arteries:
        canvas.draw_tube(artery, Tissue.ARTERY)
    for vein in organs.systemic_veins:
        canvas.draw_tube(vein, Tissue.SYSTEMIC_VEIN)
    box, level, _ = canvas.tube(organs.postcava)
    # Above the diaphragm it enters the right atrium.
    inside = (level < 0) & (canvas.tissue[box] != Tissue.HEART)
    canvas.paint(box, inside & (canvas.tissue[box] != Tissue.LUNG), Tissue.POSTCAVA)
    box, level, _ = canvas.tube(organs.aorta)
    canvas.paint(box, level < 0, Tissue.AORTA)
    if organs.calcified:
        plaque = (level < 0) & (level > -2.5) & (canvas.ripple[1][box] > 1.1)
        canvas.paint(box, plaque & (canvas.z[box] < 40.0), Tissue.AORTA_CALCIFICATION)
