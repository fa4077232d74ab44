"""Forms that bring a volume, or a name and a password, received in bounded space."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import BinaryIO, Final

from atlas_core.errors import InvalidInput
from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException

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
"""OpenAPI of an operation that takes a mask. Its form is read by hand, once the caller's right to
send it has been checked; FastAPI would read it first."""


@asynccontextmanager
async def received_form(request: Request) -> AsyncIterator[FormData]:
    """The form of a request; its files are unnamed and vanish when the block ends.

    Raises:
        InvalidInput: the body is not a form.
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


def file_in(form: FormData, field: str, *, plain_name: bool) -> BinaryIO:
    """The content of the file in `field`. Its name is never used to build a path.

    Args:
        plain_name: refuse a name with a path in it. (One stock client always sends its whole path.)

    Raises:
        InvalidInput: there is no file, or its name is a path.
    """
    found = form.get(field)
    if not isinstance(found, UploadFile):
        raise InvalidInput(f"no file in the field {field!r} of the form", expected="a .nii.gz file")
    name = found.filename or ""
    if plain_name and (not FILE_NAME.fullmatch(name) or name in (".", "..")):
        raise InvalidInput(
            "the file's name is a path",
            expected="a plain name, as mask.nii.gz",
            remedy="send the name without its folder",
        )
    return found.file
