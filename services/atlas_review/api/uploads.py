"""Volumes that somebody sends: received in bounded space, and checked before anything is stored.

What arrives lies in unnamed files and in the store's ``.incoming``; a process that is killed
leaves nothing else, and the next start sweeps that.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from atlas_core.errors import AtlasError, CorruptFile, InvalidInput, UnknownLabel
from atlas_core.imaging import LabelVolume, Volume, read_header, read_label
from atlas_core.organs import BACKGROUND
from atlas_core.records import Case
from atlas_core.store import CaseStore
from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException

COPY_BYTES: Final = 1 << 20

FILE_NAME: Final = re.compile(r"[^/\\\x00-\x1f]{1,255}")
"""No path, no control characters."""

MULTIPART_FILE: Final = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["label"],
                    "properties": {"label": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}
"""OpenAPI of an endpoint that takes a mask. The form is read by hand: by then it is known that its
sender may send it, which a framework that reads it first cannot say."""


@dataclass(frozen=True)
class Received:
    """A file that arrived.

    Attributes:
        content: from its beginning.
        name: as the sender calls it; never used to build a path.
    """

    content: BinaryIO
    name: str


@asynccontextmanager
async def received_form(request: Request) -> AsyncIterator[FormData]:
    """The form of a request; its files go when the block ends.

    Raises:
        InvalidInput: it is none.
    """
    kind = request.headers.get("content-type", "")
    if not kind.startswith(("multipart/form-data", "application/x-www-form-urlencoded")):
        raise InvalidInput("not a form", expected="multipart/form-data", got=kind or "no type")
    try:
        form = await request.form(max_files=4, max_fields=16)
    except (MultiPartException, KeyError, ValueError) as error:
        raise InvalidInput("the form cannot be read", got=str(error)) from None
    try:
        yield form
    finally:
        await form.close()


def file_of(form: FormData, field: str, *, plain_name: bool) -> Received:
    """The file in `field`.

    Args:
        plain_name: refuse a name with a path in it. (One stock client always sends its whole path.)

    Raises:
        InvalidInput: there is none, or its name is a path.
    """
    found = form.get(field)
    if not isinstance(found, UploadFile):
        raise InvalidInput(f"no file in the field {field!r} of the form", expected="a .nii.gz file")
    name = found.filename or ""
    if plain_name and (not FILE_NAME.fullmatch(name) or name in (".", "..")):
        raise InvalidInput(
            "the file's name is a path",
            expected="a plain name, as mask.nii.gz",
            remedy="send the name alone",
        )
    return Received(found.file, name)


@contextmanager
def on_disk(store: CaseStore, content: BinaryIO) -> Iterator[Path]:
    """`content` as a file, until the block ends."""
    with store.incoming() as folder:
        path = folder / "upload"
        content.seek(0)
        with path.open("wb") as file:
            shutil.copyfileobj(content, file, COPY_BYTES)
        yield path


def label_on_grid(path: Path, case: Case) -> LabelVolume:
    """A mask or label map on the grid of the case's CT, turned to the CT's own axis order.

    The grid is compared before a voxel is read: a header that claims too much costs nothing.

    Raises:
        InvalidInput: it is no NIfTI volume of whole numbers (`UnsupportedVolume`, `CorruptFile`),
            or on another grid (`GridMismatch`); the case is named.
    """
    try:
        if path.stat().st_size == 0:
            raise CorruptFile("the file is empty")
        grid = case.geometry
        found = read_header(path).geometry
        same_voxels = grid.canonical().same_grid(found.canonical())
        if not same_voxels:
            grid.require_same_grid(found, this="CT", that="mask", case=case.id)
        label = read_label(path, max_voxels=grid.voxels)
    except AtlasError as error:
        raise error.with_case(case.id) from None
    if grid.same_grid(label.geometry):
        return LabelVolume(label.voxels, grid, label.values)
    turned = label.geometry.axis_map.to_canonical(label.voxels)
    return LabelVolume(grid.axis_map.from_canonical(turned), grid, label.values)


def organ_mask_of(label: LabelVolume, case: Case, value: int | None) -> Volume:
    """The mask of one organ: the voxels of `value`, or (None) of the only value that occurs.

    Raises:
        UnknownLabel: several values and none was named, or the named one next to unknown others.
    """
    values = [found for found in label.values if found != BACKGROUND]
    if value is None and len(values) > 1:
        raise UnknownLabel(
            "a mask of one organ holds one value",
            case=case.id,
            expected="0 and one other value",
            got=", ".join(str(found) for found in values[:8]),
            remedy="name the organ's value (value=…), or hand in a mask of this organ alone",
        )
    if value is None:
        mask = label.voxels != BACKGROUND
    else:
        mask = label.voxels == value
        if values and value not in values:
            raise UnknownLabel(
                "the mask does not hold the value that was named",
                case=case.id,
                expected=value,
                got=", ".join(str(found) for found in values[:8]),
            )
    return Volume(mask.astype(np.uint8), case.geometry)
