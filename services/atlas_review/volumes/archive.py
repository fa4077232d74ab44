"""A case as a zip for people who work in ITK-SNAP or 3D Slicer."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator
from typing import IO, Final

from atlas_core.organs import Organ, OrganScheme

from atlas_review.volumes.case_files import CaseFile

CHUNK_BYTES: Final = 1 << 20

READ_ME: Final = """{case}

ct.nii.gz           the CT
labels.nii.gz       one label map of all organs, on the CT's grid
labels.itksnap.txt  ITK-SNAP: Segmentation > Import Label Descriptions
labels.ctbl         3D Slicer: add it as a colour table, then load labels.nii.gz with it
attention.nii.gz    where the models disagree, are unsure or overlap (Eq. 4; larger is worse)

Hand in a mask of one organ, or load a map of all, on the web page; keep the CT's grid.
"""


def write_archive(case_id: str, files: dict[str, CaseFile], scheme: OrganScheme) -> IO[bytes]:
    """A zip file of `files` (name → file) with colours for both programs.

    Volumes are compressed already and are stored as they are.

    Returns:
        The archive as an unnamed file, at its beginning; the caller closes it.
    """
    archive = tempfile.TemporaryFile()  # noqa: SIM115  closed by the caller
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as content:
        content.writestr(f"{case_id}/README.txt", READ_ME.format(case=case_id))
        content.writestr(f"{case_id}/labels.itksnap.txt", itksnap_labels(scheme))
        content.writestr(f"{case_id}/labels.ctbl", slicer_colours(scheme))
        for name, file in files.items():
            content.write(file.path, f"{case_id}/{name}")
    archive.seek(0)
    return archive


def read_chunks(archive: IO[bytes]) -> Iterator[bytes]:
    """The archive in chunks; closed at the end."""
    with archive:
        while chunk := archive.read(CHUNK_BYTES):
            yield chunk


def itksnap_labels(scheme: OrganScheme) -> str:
    """Label descriptions: index, red, green, blue, opacity, visible, in 3D, name."""
    lines = ['    0     0    0    0        0  0  0    "Clear Label"']
    for organ in scheme:
        red, green, blue = _rgb(organ)
        lines.append(
            f'{organ.label:5d} {red:5d} {green:4d} {blue:4d}        1  1  1    "{organ.title}"'
        )
    return "\n".join(lines) + "\n"


def slicer_colours(scheme: OrganScheme) -> str:
    """A colour table: index, name, red, green, blue, alpha."""
    lines = ["# Color table: Atlas Loop", "0 background 0 0 0 0"]
    for organ in scheme:
        red, green, blue = _rgb(organ)
        lines.append(f"{organ.label} {organ.name} {red} {green} {blue} 255")
    return "\n".join(lines) + "\n"


def _rgb(organ: Organ) -> tuple[int, int, int]:
    return tuple(int(organ.colour[at : at + 2], 16) for at in (1, 3, 5))  # type: ignore[return-value]
