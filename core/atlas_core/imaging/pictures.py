"""Pictures of a case for the report: CT, pseudo labels and attention in three planes.

Display conventions are those of a reading room: the patient's right is on the left of axial and
coronal pictures, anterior is up in axial ones, the head is up in coronal and sagittal ones, and
sagittal pictures look from the patient's left (anterior on the left). Voxels are shown in their
true proportions whatever the slice spacing.

Volumes are read in slabs along z, so memory does not grow with the number of slices.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging.nifti_reader import open_slabs, read_header
from atlas_core.organs import OrganScheme

SOFT_TISSUE_HU = (-160.0, 240.0)
"""The usual abdominal display window: level 40, width 400."""

ATTENTION_SHOWN = 1.6
"""Attention at the top of the colour bar: uncertainty and inconsistency end below 0.9, overlap adds
1 (Eq. 1–4). Fixed, so that pictures of different cases compare."""

ATTENTION_OPAQUE = 0.4
"""From this attention on the colour covers the CT fully enough to be read off the bar; fainter
attention lets the anatomy through."""

PICTURE_PX = 480
"""Longer side of a picture: sharp at the width that a page gives it, about 20 kB each."""

SLAB = 32
"""Slices read at a time: 32 slices of 512×512 float32 are 32 MiB."""

# The upper three quarters of matplotlib's "inferno" (CC0): perceptually even, readable when
# colour-blind; its black end would vanish on the CT.
HEAT = (
    "#57106e", "#71196e", "#8a226a", "#a32c61", "#bc3754", "#d24644", "#e45a31", "#f1731d",
    "#f98e09", "#fcac11", "#f9cb35", "#f2ea69", "#fcffa4",
)  # fmt: skip


class Plane(StrEnum):
    """Cut through the body. The value is the word shown to readers."""

    AXIAL = "axial"
    CORONAL = "coronal"
    SAGITTAL = "sagittal"

    @property
    def axis(self) -> int:
        """Canonical axis (0 = x, 1 = y, 2 = z) that the plane is normal to."""
        return {Plane.SAGITTAL: 0, Plane.CORONAL: 1, Plane.AXIAL: 2}[self]

    @property
    def letters(self) -> tuple[str, str, str, str]:
        """Patient directions at the top, right, bottom and left of the picture."""
        return {
            Plane.AXIAL: ("A", "L", "P", "R"),
            Plane.CORONAL: ("H", "L", "F", "R"),
            Plane.SAGITTAL: ("H", "P", "F", "A"),
        }[self]


class Layer(StrEnum):
    """What lies over the CT."""

    CT = "CT"
    LABELS = "pseudo labels"
    ATTENTION = "attention"


@dataclass(frozen=True)
class Cut:
    """One plane through all volumes of a case, turned to display order ``[row, column]``.

    Attributes:
        plane: orientation of the cut.
        index: canonical voxel index along ``plane.axis``.
        ct: Hounsfield units.
        labels: label ids of the pseudo label.
        attention: attention summed over the organs that count, >= 0.
        pixel_mm: height and width of a pixel.
    """

    plane: Plane
    index: int
    ct: NDArray[np.float32]
    labels: NDArray[np.uint8]
    attention: NDArray[np.float32]
    pixel_mm: tuple[float, float]

    @property
    def size_mm(self) -> tuple[float, float]:
        """Height and width of the picture."""
        rows, columns = self.ct.shape
        return rows * self.pixel_mm[0], columns * self.pixel_mm[1]


def most_attended(attention: Sequence[Path], geometry: VolumeGeometry) -> dict[Plane, int]:
    """Index of the slice with the largest summed attention, per plane.

    Args:
        attention: attention maps of the organs that count, each on the grid or on a box of it.
        geometry: the grid, canonical.

    Returns:
        Canonical index along ``plane.axis``; the middle of the volume where there is no attention.
    """
    profile = [np.zeros(n) for n in geometry.shape]
    for path in attention:
        for (z, y, x), slab in _slabs(path, geometry):
            profile[2][z] += slab.sum(axis=(1, 2), dtype=np.float64)
            over_z = slab.sum(axis=0, dtype=np.float64)
            profile[1][y] += over_z.sum(axis=1)
            profile[0][x] += over_z.sum(axis=0)
    return {
        plane: int(np.argmax(sums)) if (sums := profile[plane.axis]).any() else len(sums) // 2
        for plane in Plane
    }


def cut_case(ct: Path, labels: Path, attention: Sequence[Path]) -> list[Cut]:
    """Axial, coronal and sagittal cuts through a case, where most attention is.

    Args:
        ct: its CT.
        labels: its pseudo label.
        attention: attention maps of the organs that count.
    """
    geometry = read_header(ct).geometry.canonical()
    at = most_attended(attention, geometry)
    images = _planes([ct], geometry, at)
    masks = _planes([labels], geometry, at)
    heat = _planes(attention, geometry, at)
    x_mm, y_mm, z_mm = geometry.spacing_mm
    pixels = {
        Plane.AXIAL: (y_mm, x_mm),
        Plane.CORONAL: (z_mm, x_mm),
        Plane.SAGITTAL: (z_mm, y_mm),
    }
    return [
        Cut(
            plane=plane,
            index=at[plane],
            ct=_displayed(images[plane]),
            labels=_displayed(masks[plane]).astype(np.uint8),
            attention=_displayed(heat[plane]),
            pixel_mm=pixels[plane],
        )
        for plane in Plane
    ]


def picture(cut: Cut, layer: Layer, scheme: OrganScheme) -> Image.Image:
    """`cut` as an RGB picture of square pixels with `layer` over the CT."""
    size = _picture_size(cut)
    rgb = _grey(cut.ct, size)
    if layer is Layer.LABELS:
        rgb = _with_labels(rgb, cut.labels, scheme)
    elif layer is Layer.ATTENTION:
        rgb = _with_attention(rgb, cut.attention)
    return Image.fromarray(np.round(rgb).astype(np.uint8), mode="RGB")


def data_uri(image: Image.Image) -> str:
    """`image` as a ``data:`` address holding WebP, so that a page needs no second file."""
    buffer = io.BytesIO()
    # 85 keeps thin contours free of visible colour fringes at a fifth of PNG's size.
    image.save(buffer, format="WEBP", quality=85, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def heat_colours(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """Colour of attention `values` (any shape) as RGB 0..255 on a new last axis."""
    steps = np.array([_rgb(colour) for colour in HEAT], dtype=np.float32)
    position = np.clip(values / ATTENTION_SHOWN, 0.0, 1.0) * (len(steps) - 1)
    channels = [np.interp(position, np.arange(len(steps)), steps[:, c]) for c in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)


def _slabs(
    path: Path, geometry: VolumeGeometry
) -> Iterator[tuple[tuple[slice, slice, slice], NDArray[np.float32]]]:
    """Slabs ``[z, y, x]`` of a volume, canonical, from bottom to top, and where each lies on the
    canonical grid `geometry`, of which the volume may be a box.

    One file is open at a time: its decompressed bytes may lie in a temporary file meanwhile.
    """
    with open_slabs(path) as volume:
        x, y, z = geometry.start_of(volume.canonical, this="CT", that="map")
        columns, rows, slices = volume.canonical.shape
        for start in range(0, slices, SLAB):
            stop = min(start + SLAB, slices)
            where = slice(z + start, z + stop), slice(y, y + rows), slice(x, x + columns)
            yield where, volume.read(start, stop)


def _planes(
    volumes: Sequence[Path], geometry: VolumeGeometry, at: dict[Plane, int]
) -> dict[Plane, NDArray[np.float32]]:
    """Sum of `volumes` on each plane: axial ``[y, x]``, coronal ``[z, x]``, sagittal ``[z, y]``."""
    nx, ny, nz = geometry.shape
    planes = {
        Plane.AXIAL: np.zeros((ny, nx), np.float32),
        Plane.CORONAL: np.zeros((nz, nx), np.float32),
        Plane.SAGITTAL: np.zeros((nz, ny), np.float32),
    }
    axial, coronal, sagittal = at[Plane.AXIAL], at[Plane.CORONAL], at[Plane.SAGITTAL]
    for path in volumes:
        for (z, y, x), slab in _slabs(path, geometry):
            if y.start <= coronal < y.stop:
                planes[Plane.CORONAL][z, x] += slab[:, coronal - y.start, :]
            if x.start <= sagittal < x.stop:
                planes[Plane.SAGITTAL][z, y] += slab[:, :, sagittal - x.start]
            if z.start <= axial < z.stop:
                planes[Plane.AXIAL][y, x] += slab[axial - z.start]
    return planes


def _displayed(plane: NDArray[np.float32]) -> NDArray[np.float32]:
    """Canonical axes point to R, A, S; on screen columns run to L or P and rows to P or F."""
    return np.ascontiguousarray(plane[::-1, ::-1])


def _picture_size(cut: Cut) -> tuple[int, int]:
    """Height and width in square pixels."""
    height_mm, width_mm = cut.size_mm
    scale = PICTURE_PX / max(height_mm, width_mm)
    return max(1, round(height_mm * scale)), max(1, round(width_mm * scale))


def _resized(
    plane: NDArray[np.float32], size: tuple[int, int], how: Image.Resampling
) -> NDArray[np.float32]:
    image = Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32), mode="F")
    return np.asarray(image.resize((size[1], size[0]), resample=how), dtype=np.float32)


def _grey(ct: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    low, high = SOFT_TISSUE_HU
    # Windowed before resizing: metal and padding outside the window must not ring into tissue.
    shown = (np.clip(ct, low, high) - low) * (255.0 / (high - low))
    grey = np.clip(_resized(shown, size, Image.Resampling.BICUBIC), 0.0, 255.0)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _with_labels(
    rgb: NDArray[np.float32], labels: NDArray[np.uint8], scheme: OrganScheme
) -> NDArray[np.float32]:
    """Organs filled faintly, so that texture shows, with an opaque outline."""
    ids = _resized(labels.astype(np.float32), rgb.shape[:2], Image.Resampling.NEAREST)
    colours = np.zeros((256, 3), np.float32)
    for organ in scheme:
        colours[organ.label] = _rgb(organ.colour)
    label = ids.astype(np.intp)
    edge = np.zeros(label.shape, bool)
    edge[1:] |= label[1:] != label[:-1]
    edge[:, 1:] |= label[:, 1:] != label[:, :-1]
    edge[:-1] |= label[:-1] != label[1:]
    edge[:, :-1] |= label[:, :-1] != label[:, 1:]
    opacity = np.where(label > 0, np.where(edge, 1.0, 0.3), 0.0)[:, :, None].astype(np.float32)
    return rgb * (1 - opacity) + colours[label] * opacity


def _with_attention(
    rgb: NDArray[np.float32], attention: NDArray[np.float32]
) -> NDArray[np.float32]:
    shown = np.maximum(_resized(attention, rgb.shape[:2], Image.Resampling.BILINEAR), 0.0)
    opacity = np.clip(shown / ATTENTION_OPAQUE, 0.0, 0.9)[:, :, None]
    # Darkened, so that faint attention stands out from bright, contrast-filled vessels.
    mixed = rgb * 0.75 * (1 - opacity) + heat_colours(shown) * opacity
    return mixed.astype(np.float32)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
