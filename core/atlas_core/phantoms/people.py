"""Anatomies of people, out of label maps, as tissues that phantoms are drawn from.

A label map says which structure a voxel belongs to; what a CT shows there follows from the tissue:
bones have a shell, kidneys a cortex, stomach and bowel a wall and contents. Between the structures
lie fat and muscle, out to a body surface that is closed around them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from atlas_core.errors import InvalidInput
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import LabelVolume, read_label
from atlas_core.imaging.label_maps import VoxelBox, bounding_box, boxes_of
from atlas_core.organs import OrganScheme
from atlas_core.phantoms.anatomy import Tissue

ANATOMY_ORGANS = "totalsegmentator_v2"
"""Organs of label maps, unless somebody says others: hardly anybody else names a whole body."""

SPACING_MM = 2.0
"""Of an anatomy's grid: finer structures are noise in label maps of 1.5 mm."""

HULL_MM = 56.0
"""Gaps between structures up to twice this wide, in a slice, lie inside the body."""

SURFACE_MM = 8.0
"""Skin and fat around the hull of the labelled structures."""

LEAST_ML = 200.0
"""Less than this of labelled structures is no anatomy."""


_MASKS_FOLDER = "segmentations"

_Picked = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class Filling:
    """What a structure is made of.

    Attributes:
        outer: its tissue, or that of its wall.
        inner: inside the wall; None: the same.
        wall_mm: thickness of the wall.
    """

    outer: Tissue
    inner: Tissue | None = None
    wall_mm: float = 0.0


_BONE = Filling(Tissue.CORTICAL_BONE, Tissue.SPONGY_BONE, 2.0)
_BOWEL = Filling(Tissue.BOWEL_WALL, Tissue.BOWEL_FLUID, 2.0)
_SOFT = Filling(Tissue.MUSCLE)

FILLINGS: Mapping[str, Filling] = {
    "aorta": Filling(Tissue.AORTA),
    "gall_bladder": Filling(Tissue.GALL_BLADDER),
    "gallbladder": Filling(Tissue.GALL_BLADDER),
    "kidney_left": Filling(Tissue.KIDNEY_LEFT_CORTEX, Tissue.KIDNEY_LEFT_MEDULLA, 7.0),
    "kidney_right": Filling(Tissue.KIDNEY_RIGHT_CORTEX, Tissue.KIDNEY_RIGHT_MEDULLA, 7.0),
    "liver": Filling(Tissue.LIVER),
    "pancreas": Filling(Tissue.PANCREAS),
    "postcava": Filling(Tissue.POSTCAVA),
    "inferior_vena_cava": Filling(Tissue.POSTCAVA),
    "spleen": Filling(Tissue.SPLEEN),
    "stomach": Filling(Tissue.STOMACH_WALL, Tissue.STOMACH_FLUID, 3.0),
    "adrenal_gland_*": Filling(Tissue.ADRENAL),
    "portal_vein*": Filling(Tissue.PORTAL_VEIN),
    "esophagus": Filling(Tissue.BOWEL_WALL),
    "duodenum": _BOWEL,
    "small_bowel": _BOWEL,
    "intestine": _BOWEL,
    "colon": Filling(Tissue.BOWEL_WALL, Tissue.FAECES, 2.0),
    "rectum": Filling(Tissue.BOWEL_WALL, Tissue.FAECES, 2.0),
    "urinary_bladder": Filling(Tissue.BOWEL_FLUID),
    "bladder": Filling(Tissue.BOWEL_FLUID),
    "kidney_cyst_*": Filling(Tissue.BOWEL_FLUID),
    "heart": Filling(Tissue.HEART),
    "atrial_appendage_*": Filling(Tissue.HEART),
    "pulmonary_vein": Filling(Tissue.HEART),
    "brachiocephalic_trunk": Filling(Tissue.ARTERY),
    "*_artery_*": Filling(Tissue.ARTERY),
    "celiac_trunk": Filling(Tissue.ARTERY),
    "brachiocephalic_vein_*": Filling(Tissue.SYSTEMIC_VEIN),
    "superior_vena_cava": Filling(Tissue.SYSTEMIC_VEIN),
    "iliac_vena_*": Filling(Tissue.SYSTEMIC_VEIN),
    "hepatic_vessel": Filling(Tissue.LIVER_VESSEL),
    "lung_*": Filling(Tissue.LUNG),
    "trachea": Filling(Tissue.BOWEL_GAS),
    "costal_cartilages": Filling(Tissue.CARTILAGE),
    "spinal_cord": Filling(Tissue.SPINAL_CANAL),
    "vertebrae_*": _BONE,
    "rib_*": _BONE,
    "hip_*": _BONE,
    "femur_*": _BONE,
    "humerus_*": _BONE,
    "scapula_*": _BONE,
    "clavicula_*": _BONE,
    "sacrum": _BONE,
    "sternum": _BONE,
    "skull": _BONE,
    "gluteus_*": _SOFT,
    "autochthon_*": _SOFT,
    "iliopsoas_*": _SOFT,
    "prostate*": _SOFT,
    "thyroid_gland": _SOFT,
    "brain": _SOFT,
}
"""Structure, by name as in `fnmatch` → what it is made of: the names of TotalSegmentator v2 and of
AbdomenAtlas."""


@dataclass(frozen=True)
class Anatomy:
    """One person, ready to be drawn.

    Attributes:
        name: of the file or of the person's folder that it was read from.
        tissue: `Tissue` ``[z, y, x]``, ascending to Superior, Anterior and Right, `SPACING_MM`
            apart; fat where nothing is labelled inside the body, air outside.
        outside_mm: distance to the body in the slice, uint8 ``[z, y, x]``; 0 inside, 255 for more.
        unknown: structures whose tissue is not known; they are taken for muscle.
    """

    name: str
    tissue: NDArray[np.uint8]
    outside_mm: NDArray[np.uint8]
    unknown: tuple[str, ...] = ()

    @cached_property
    def box(self) -> VoxelBox:
        """What the body fills, of z, y and x."""
        found = bounding_box(self.outside_mm == 0)
        assert found is not None, "`read_anatomy` refuses what is empty"
        return found

    @cached_property
    def sha256(self) -> str:
        """Of the tissues: another label map, another anatomy."""
        described = hashlib.sha256(repr(self.tissue.shape).encode())
        described.update(np.ascontiguousarray(self.tissue).tobytes())
        return described.hexdigest()


def read_anatomy(path: Path, scheme: OrganScheme) -> Anatomy:
    """Read an anatomy.

    Args:
        path: a label map with the ids of `scheme`, or a folder with a mask per structure, named
            after it, itself or in ``segmentations``, as TotalSegmentator and AbdomenAtlas write.
        scheme: names of a label map's ids; a folder needs none.

    Raises:
        InvalidInput: no structures, or fewer than make an anatomy.
        CorruptFile, NotFound: a file cannot be read.
        GridMismatch: masks on different grids.
    """
    tissue = np.zeros((0, 0, 0), np.uint8)
    unknown: list[str] = []
    first, picked = None, None
    for name, volume, value in _structures(path, scheme):
        if first is None or picked is None:
            first, picked = volume.geometry, _picked(volume.geometry)
            tissue = np.zeros([len(axis) for axis in picked], np.uint8)
        first.require_same_grid(volume.geometry, this="first mask", that=name, case=path.name)
        mask = _coarse(volume, value, picked)
        filling = _filling(name)
        if filling is None:
            unknown.append(name)
        _fill(tissue, mask, filling or _SOFT)
    labelled_ml = np.count_nonzero(tissue) * SPACING_MM**3 / 1000
    if labelled_ml < LEAST_ML:
        raise InvalidInput(
            f"{path} holds no anatomy",
            expected=f"masks of structures, or a label map, of at least {LEAST_ML:g} ml",
            got=f"{labelled_ml:.0f} ml",
            remedy="name a folder as TotalSegmentator writes it, or a label map and its organs",
        )
    outside = _outside_mm(tissue > 0)
    tissue[(tissue == Tissue.AIR) & (outside == 0)] = Tissue.FAT
    person = path.parent if path.name == _MASKS_FOLDER else path
    return Anatomy(person.name, tissue, outside, tuple(unknown))


def _structures(path: Path, scheme: OrganScheme) -> Iterator[tuple[str, LabelVolume, int | None]]:
    """Name, volume and value (None: whatever is not 0) of every structure, in a fixed order."""
    if path.is_dir():
        inner = path / _MASKS_FOLDER
        for file in sorted((inner if inner.is_dir() else path).glob("*.nii.gz")):
            name = file.name.removesuffix(".nii.gz")
            if name not in ("ct", "combined_labels"):
                yield name.lower(), read_label(file), None
        return
    volume = read_label(path)
    there = boxes_of(volume.voxels, max(organ.label for organ in scheme))
    for organ in scheme:
        if there[organ.label - 1] is not None:
            yield organ.name, volume, organ.label


def _coarse(volume: LabelVolume, value: int | None, picked: _Picked) -> NDArray[np.bool_]:
    """The mask on the grid of anatomies, ``[z, y, x]``, by nearest neighbours."""
    canonical = volume.geometry.axis_map.to_canonical(volume.voxels).transpose(2, 1, 0)
    coarse = canonical[np.ix_(*picked)]
    return np.asarray(coarse != 0 if value is None else coarse == value)


def _picked(geometry: VolumeGeometry) -> _Picked:
    """The voxels along z, y and x that lie nearest to those of the anatomy's grid."""
    canonical = geometry.canonical()
    z, y, x = (
        np.minimum(
            ((np.arange(max(1, round(n * mm / SPACING_MM))) + 0.5) * SPACING_MM / mm).astype(int),
            n - 1,
        )
        for n, mm in zip(canonical.shape[::-1], canonical.spacing_mm[::-1], strict=True)
    )
    return z, y, x


def _filling(name: str) -> Filling | None:
    return next((f for pattern, f in FILLINGS.items() if fnmatchcase(name, pattern)), None)


def _fill(tissue: NDArray[np.uint8], mask: NDArray[np.bool_], filling: Filling) -> None:
    tissue[mask] = filling.outer
    box = None if filling.inner is None else bounding_box(mask)
    if filling.inner is None or box is None:
        return
    # A margin of one voxel, so that the border of the box is no border of the structure.
    depth = ndimage.distance_transform_edt(np.pad(mask[box], 1), sampling=SPACING_MM)
    tissue[box][depth[1:-1, 1:-1, 1:-1] > filling.wall_mm] = filling.inner


def _outside_mm(labelled: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Distance to the body, slice by slice: the closed hull of what is labelled, and its surface.

    Slices without anything labelled have what the nearest slice has.
    """
    pad = round((HULL_MM + SURFACE_MM) / SPACING_MM) + 1
    found = np.full(labelled.shape, 255, np.uint8)
    full = np.flatnonzero(labelled.any(axis=(1, 2)))
    for z in full:
        near = ndimage.distance_transform_edt(~np.pad(labelled[z], pad), sampling=SPACING_MM)
        hull = ndimage.distance_transform_edt(near <= HULL_MM, sampling=SPACING_MM) > HULL_MM
        body = ndimage.binary_fill_holes(hull)
        away = ndimage.distance_transform_edt(~body, sampling=SPACING_MM) - SURFACE_MM
        found[z] = np.clip(np.ceil(away), 0, 255)[pad:-pad, pad:-pad]
    if len(full):
        empty = np.setdiff1d(np.arange(len(labelled)), full)
        nearest = full[np.abs(full[None, :] - empty[:, None]).argmin(axis=1)]
        found[empty] = found[nearest]
    return found
