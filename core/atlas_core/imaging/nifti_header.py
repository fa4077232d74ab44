"""NIfTI headers, parsed and checked: shape, coding of voxels, geometry. The only module that uses
nibabel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from atlas_core.errors import (
    CorruptFile,
    LimitExceeded,
    UnsupportedVolume,
)
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging.voxel_decoder import (
    ByteStream,
    VoxelCoding,
    cut_off,
)

MAX_HEADER_BYTES = 1 << 24
"""Header extensions are skipped; 16 MiB is more than any tool writes."""

SINGLE_FILE_OFFSET = 352
"""Where voxels of a NIfTI-1 ``.nii`` begin: 348 bytes of header, 4 for "no extension"."""

READABLE = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2",
    768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
"""NIfTI data type code → NumPy type, of the types that can be a CT or a label."""

NOT_SCALAR = {
    1: "1-bit", 32: "complex64", 128: "RGB24", 1536: "float128", 1792: "complex128",
    2048: "complex256", 2304: "RGBA32",
}  # fmt: skip


AffineSource = Literal["sform", "qform"]

MAX_SIZE_RATIO = 1.1
"""Voxels of sform and qform whose edges differ by more are a fault, not rounding: volumes and every
distance would be wrong by it."""

MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
"""NIfTI unit code (unknown, metre, millimetre, micrometre) → mm. Unknown means mm in practice: it
is what nibabel writes by default."""


@dataclass(frozen=True)
class NiftiInfo:
    """The checked content of a header.

    Attributes:
        geometry: grid in mm RAS+ (metres and micrometres are converted).
        coding: stored data type with its byte order, slope and intercept.
        voxel_offset: position of the first voxel in the decompressed bytes.
        compressed: the file is gzip, whatever its name says.
        warnings: unusual but readable properties, in plain words.
        other: the qform's grid where its voxels have another size than the sform's.
    """

    geometry: VolumeGeometry
    coding: VoxelCoding
    voxel_offset: int
    compressed: bool
    warnings: tuple[str, ...] = ()
    other: VolumeGeometry | None = None

    def placed(self, by: AffineSource | None = None) -> VolumeGeometry:
        """The grid by the affine that is to be believed.

        Args:
            by: None: the sform's; both must then give voxels of the same size.

        Raises:
            UnsupportedVolume: sizes differ, and nobody said which of them is right.
        """
        if self.other is None or by == "sform":
            return self.geometry
        if by == "qform":
            return self.other
        sizes = (
            "×".join(f"{mm:.4g}" for mm in grid.spacing_mm) for grid in (self.geometry, self.other)
        )
        raise UnsupportedVolume(
            "sform and qform disagree about the size of a voxel",
            expected=f"sizes within {MAX_SIZE_RATIO - 1:.0%} of each other",
            got=" mm (sform) and ".join(sizes) + " mm (qform, pixdim)",
            remedy="find out which is right, then pass --affine sform or --affine qform",
        )

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.coding.dtype

    @property
    def slope(self) -> float:
        return self.coding.slope

    @property
    def intercept(self) -> float:
        return self.coding.intercept

    @property
    def voxel_bytes(self) -> int:
        """Bytes of voxels that the header claims."""
        return self.geometry.voxels * int(self.coding.dtype.itemsize)


def parse_header(data: ByteStream) -> NiftiInfo:
    """Parse the header at the start of `data`, and leave `data` at the first voxel.

    Raises:
        CorruptFile: it ends too early, or contradicts itself.
        UnsupportedVolume: no NIfTI, or no 3D volume of numbers with a sound affine.
    """
    block = data.take(4)
    header_class, order = _header_kind(block)
    block += data.take(header_class.template_dtype.itemsize - 4)
    if len(block) < header_class.template_dtype.itemsize:
        raise cut_off(f"a header of {header_class.template_dtype.itemsize} bytes", len(block))
    header = header_class(block, order, check=False)
    _check_magic(header)
    shape = _shape(header)
    coding = _coding(header, order)
    offset = _voxel_offset(header, len(block))
    geometry, warnings, other = _geometry(header, shape)
    skipped = data.take(offset - len(block))
    if len(skipped) < offset - len(block):
        raise cut_off(f"voxels from byte {offset} on", len(block) + len(skipped))
    return NiftiInfo(geometry, coding, offset, False, warnings, other)


def _header_kind(first: bytes) -> tuple[Any, str]:
    """Header class and byte order, by the size that the first four bytes name."""
    if len(first) < 4:
        raise cut_off("a NIfTI header", f"{len(first)} bytes")
    for order, word in (("<", "little"), (">", "big")):
        size = int.from_bytes(first, word)  # type: ignore[arg-type]
        if size == 348:
            return nib.Nifti1Header, order
        if size == 540:
            return nib.Nifti2Header, order
    raise UnsupportedVolume("not a NIfTI file", remedy="convert it to NIfTI (.nii.gz) first")


def _check_magic(header: Any) -> None:
    magic = bytes(header["magic"])[:3]
    if magic in (b"ni1", b"ni2"):
        raise UnsupportedVolume(
            "header without voxels (.hdr/.img pair)", remedy="convert it to one .nii.gz file"
        )
    if magic not in (b"n+1", b"n+2"):
        raise UnsupportedVolume(
            "not a NIfTI file (Analyze 7.5 has no reliable orientation)",
            remedy="convert it to NIfTI (.nii.gz) from its source",
        )


def _shape(header: Any) -> tuple[int, int, int]:
    """Voxels along i, j, k; trailing axes of one voxel are dropped."""
    dim = [int(n) for n in header["dim"]]
    if not 1 <= dim[0] <= 7:
        raise CorruptFile(
            "header names an impossible number of axes",
            expected="1..7",
            got=dim[0],
            remedy="copy the file again",
        )
    axes = dim[1 : dim[0] + 1]
    while len(axes) > 3 and axes[-1] == 1:
        axes.pop()
    if min(axes) < 1:
        raise CorruptFile(
            "header claims an empty or negative axis", got=tuple(axes), remedy="copy the file again"
        )
    if len(axes) != 3:
        raise UnsupportedVolume(
            f"volume has {len(axes)} axes",
            expected="3",
            got="×".join(str(n) for n in axes),
            remedy="store each 3D volume in a file of its own",
        )
    return (axes[0], axes[1], axes[2])


def _coding(header: Any, order: str) -> VoxelCoding:
    code = int(header["datatype"])
    if code not in READABLE:
        raise UnsupportedVolume(
            "voxels are not plain numbers",
            expected="8 to 64 bit integers or floats",
            got=NOT_SCALAR.get(code, f"data type code {code}"),
            remedy="store Hounsfield units or label values",
        )
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0.0 or not np.isfinite(slope):
        # "Not scaled" by the standard; nibabel writes it as NaN.
        slope, intercept = 1.0, 0.0
    if not np.isfinite(intercept):
        raise CorruptFile("scl_inter is not finite", got=intercept, remedy="mend the header")
    return VoxelCoding(np.dtype(order + READABLE[code]), slope, intercept)


def _voxel_offset(header: Any, header_bytes: int) -> int:
    """Position of the first voxel; 0 means "right behind the header", as the standard says."""
    offset = float(header["vox_offset"])
    least = header_bytes + 4
    if offset == 0.0:
        return least
    if not (offset.is_integer() and least <= offset <= MAX_HEADER_BYTES):
        raise CorruptFile(
            "header names an impossible position of its voxels",
            expected=f"{least}..{MAX_HEADER_BYTES}",
            got=offset,
            remedy="copy the file again",
        )
    return int(offset)


def _geometry(
    header: Any, shape: tuple[int, int, int]
) -> tuple[VolumeGeometry, tuple[str, ...], VolumeGeometry | None]:
    """Grid in mm, from the sform, else the qform (as nibabel and FSL choose); warnings; the grid of
    the qform (without one: the sform with the voxels of pixdim) if its voxels have another size."""
    unit = int(header["xyzt_units"]) & 7
    if unit not in MM_PER_UNIT:
        raise UnsupportedVolume(
            "header names an unknown unit of length",
            got=f"code {unit}",
            remedy="state millimetres in xyzt_units",
        )
    scale = np.array([[MM_PER_UNIT[unit]]] * 3 + [[1.0]])
    # What is not finite is refused below; it needs no warning on the way.
    with np.errstate(all="ignore"):
        sform = header.get_sform(coded=True)[0]
        qform = _qform(header)
    affine = sform if sform is not None else qform
    if affine is None:
        raise UnsupportedVolume(
            "affine is missing (sform and qform code are 0)",
            remedy="convert again from the source, or copy the header of a volume on the same grid",
        )
    geometry = VolumeGeometry.from_array(shape, scale * affine)
    if sform is None:
        return geometry, (), None
    if qform is None:
        return geometry, (), _other_size(geometry, _by_pixdim(header, geometry, MM_PER_UNIT[unit]))
    other = _grid(shape, scale * qform)
    warnings: tuple[str, ...] = ()
    apart = _corners_apart_mm(geometry, other)
    if not apart <= 0.5 * min(geometry.spacing_mm):
        warnings = (f"sform and qform disagree by up to {apart:.1f} mm; the sform is used",)
    return geometry, warnings, _other_size(geometry, other)


def _by_pixdim(header: Any, geometry: VolumeGeometry, mm: float) -> VolumeGeometry | None:
    """The grid with the voxels of pixdim; None where pixdim was left as it begins: all 0 or 1."""
    edges = np.abs(np.asarray(header["pixdim"][1:4], np.float64)) * mm
    if (edges == mm).all() or not np.isfinite(edges).all() or not edges.all():
        return None
    matrix = geometry.matrix.copy()
    matrix[:3, :3] *= edges / np.array(geometry.spacing_mm)
    return _grid(geometry.shape, matrix)


def _grid(shape: tuple[int, int, int], affine: NDArray[np.float64]) -> VolumeGeometry | None:
    try:
        return VolumeGeometry.from_array(shape, affine)
    except UnsupportedVolume:
        return None


def _other_size(geometry: VolumeGeometry, other: VolumeGeometry | None) -> VolumeGeometry | None:
    """`other` if an edge of its voxels differs by more than `MAX_SIZE_RATIO`."""
    if other is None:
        return None
    ratio = np.array(geometry.spacing_mm) / np.array(other.spacing_mm)
    return other if np.maximum(ratio, 1 / ratio).max() > MAX_SIZE_RATIO else None


def _qform(header: Any) -> NDArray[np.float64] | None:
    """The qform's affine, or None where it is absent; a broken one counts only without an sform."""
    try:
        affine: NDArray[np.float64] | None = header.get_qform(coded=True)[0]
    except (HeaderDataError, ValueError) as error:
        if int(header["sform_code"]) > 0:
            return None
        raise UnsupportedVolume("qform is no rotation", remedy="mend the header") from error
    return affine


def _corners_apart_mm(geometry: VolumeGeometry, other: VolumeGeometry | None) -> float:
    if other is None:
        return float("inf")
    return float(np.linalg.norm(geometry.corners_mm() - other.corners_mm(), axis=1).max())


def header_bytes(geometry: VolumeGeometry, dtype: np.dtype[Any], slope: float) -> bytes:
    """A little-endian NIfTI-1 header with the four bytes for "no extension".

    Raises:
        LimitExceeded: an axis of more than 32767 voxels.
    """
    if max(geometry.shape) > np.iinfo(np.int16).max:
        raise LimitExceeded(
            "an axis is too long for NIfTI-1",
            expected="at most 32767",
            got=max(geometry.shape),
            remedy="cut the volume, or resample it",
        )
    header = nib.Nifti1Header(endianness="<")
    header.set_data_dtype(dtype)
    header.set_data_shape(geometry.shape)
    header.set_xyzt_units("mm")
    header.set_sform(geometry.matrix, code=1)
    try:
        header.set_qform(geometry.matrix, code=1, strip_shears=False)
    except HeaderDataError:
        # A quaternion cannot express shear: better no qform than a different grid.
        header.set_qform(None, code=0)
        header["pixdim"][1:4] = geometry.spacing_mm
    header["scl_slope"], header["scl_inter"] = slope, 0.0
    header["vox_offset"], header["magic"] = SINGLE_FILE_OFFSET, b"n+1"
    return bytes(header.binaryblock) + b"\0\0\0\0"
