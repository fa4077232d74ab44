"""Files that are small on disk and enormous in memory."""

from __future__ import annotations

import zipfile
from pathlib import Path


def compress(path: Path) -> None:
    """Pack a file of ``torch.save`` again, compressed: as a zip bomb is, of any size."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def overlap(path: Path) -> None:
    """Have the directory of a zip name its largest entry a hundred times: as large as if there."""
    with zipfile.ZipFile(path, "a") as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        archive.filelist += [largest] * 100
        archive._didModify = True  # type: ignore[attr-defined]
