"""The CT series that an object is written for: its headers in order, and its grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from atlas_core.errors import CorruptFile, GridMismatch, UnsupportedVolume
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging.dicom_reader import grid_of

REFERRED_BY: Final = (
    "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "FrameOfReferenceUID",
)  # fmt: skip
"""What an object refers to its source by. Without them no viewer finds the CT."""

MAY_BE_EMPTY: Final = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
    "StudyDate", "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
"""Attributes that every object of a study carries, with or without a value."""


@dataclass(frozen=True)
class SourceSeries:
    """Headers of one CT series and the grid of its voxels ``[column, row, slice]``.

    Attributes:
        datasets: one for each slice, along the slice normal.
        geometry: as an import of the series gives it.
    """

    datasets: tuple[Dataset, ...]
    geometry: VolumeGeometry

    @classmethod
    def of(cls, datasets: Sequence[Dataset]) -> SourceSeries:
        """The series of `datasets`, in any order; pixel data is not needed.

        Raises:
            UnsupportedVolume: no regular grid of CT slices, as an import would refuse it; or a UID
                is missing.
        """
        for keyword in REFERRED_BY:
            if not all(dataset.get(keyword) for dataset in datasets):
                raise UnsupportedVolume(
                    f"source series lacks {keyword}: nothing can refer to it",
                    remedy="take the series as the scanner or the archive sent it",
                )
        order, geometry = grid_of(datasets)
        return cls(tuple(_complete(datasets[index]) for index in order), geometry)

    def to_frames(
        self, voxels: NDArray[Any], geometry: VolumeGeometry, *, what: str = "label"
    ) -> NDArray[Any]:
        """View of `voxels` ``[i, j, k]`` on `geometry` as ``[slice, row, column]`` of the series.

        Raises:
            GridMismatch: `geometry` is not the grid of the series in some order of its axes.
        """
        ours, theirs = self.geometry.canonical(), geometry.canonical()
        if voxels.shape != geometry.shape or not ours.same_grid(theirs):
            raise GridMismatch(
                f"{what} does not lie on the grid of the source series",
                expected=f"series {self.geometry}",
                got=f"{what} {geometry}",
                remedy="take the series that the case was imported from",
            )
        turned = geometry.axis_map.to_canonical(voxels)
        return self.geometry.axis_map.from_canonical(turned).transpose(2, 1, 0)

    def from_frames(self, frames: NDArray[Any]) -> NDArray[Any]:
        """View of `frames` ``[slice, row, column]`` as voxels ``[i, j, k]`` on `geometry`."""
        return frames.transpose(2, 1, 0)

    @property
    def lps(self) -> NDArray[np.float64]:
        """The affine from ``(column, row, slice)`` to DICOM's coordinates in mm."""
        return np.asarray(np.diag([-1.0, -1.0, 1.0, 1.0]) @ self.geometry.matrix)


def _complete(dataset: Dataset) -> Dataset:
    """`dataset` with what every object of the study carries; the caller's stays as it is."""
    complete = Dataset()
    complete.update(dataset)  # `Dataset(dataset)` would share its elements
    for keyword in MAY_BE_EMPTY:
        if keyword not in complete:
            setattr(complete, keyword, None)
    return complete


def read_headers(files: Sequence[Path]) -> list[Dataset]:
    """Data sets of `files` without their pixel data.

    Raises:
        CorruptFile: one is not readable.
    """
    headers = []
    for file in files:
        try:
            headers.append(dcmread(file, stop_before_pixels=True, force=True))
        except Exception as error:  # pydicom raises what it likes, and may quote the header
            raise CorruptFile(
                "not a readable DICOM file",
                case=file.name,
                got=type(error).__name__,
                remedy="copy the series again",
            ) from None
    return headers
