"""What `infer` answers with: the label map in force, in the form that a client asks for.

All organs are in one volume, with voxel value k for the k-th organ of the atlas.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from atlas_core.errors import InvalidInput
from atlas_core.imaging import NrrdSegment, Volume, read_label, write_nrrd, write_volume
from atlas_core.records import Case
from fastapi import Response

from atlas_review.service import Review
from atlas_review.volumes import CaseFile

NIFTI: Final = ".nii.gz"
EXTENSIONS: Final = (NIFTI, ".nrrd", ".seg.nrrd")
DTYPES: Final = ("uint8", "uint16")


@dataclass(frozen=True)
class ResultForm:
    """How a client wants a label map.

    Attributes:
        extension: one of `EXTENSIONS`.
        dtype: of its voxels, one of `DTYPES`.
        deflated: compressed; OHIF's plug-in reads only what is not.
    """

    extension: str = NIFTI
    dtype: str = "uint8"
    deflated: bool = True

    @classmethod
    def read(cls, params: Mapping[str, Any]) -> Self:
        """From `result_extension`, `result_dtype` and `result_compress` in the parameters of a
        client, as MONAI Label calls them.

        Raises:
            InvalidInput: one of them is none that is offered.
        """
        extension = params.get("result_extension") or NIFTI
        dtype = params.get("result_dtype") or "uint8"
        for name, got, offered in (
            ("result_extension", extension, EXTENSIONS),
            ("result_dtype", dtype, DTYPES),
        ):
            if got not in offered:
                expected = f"one of {', '.join(offered)}"
                raise InvalidInput(f"{name} is not offered", expected=expected, got=str(got))
        return cls(extension, dtype, deflated=params.get("result_compress") is not False)


def dense_label_map(review: Review, case: Case, form: ResultForm | None = None) -> CaseFile:
    """The label map in force with voxel value k for the k-th organ; None: as NIfTI."""
    form = form or ResultForm()
    file = review.files.label_map(case)
    organs = review.settings.organs
    dense = organs.labels == tuple(range(1, len(organs) + 1))
    if dense and form == ResultForm():
        return file
    table = np.zeros(256, form.dtype)
    for k, organ in enumerate(organs, start=1):
        table[organ.label] = k
    segments = [NrrdSegment(organ.name, k, organ.colour) for k, organ in enumerate(organs, start=1)]

    def write(path: Any) -> None:
        voxels = np.asfortranarray(table[read_label(file.path).voxels])
        if form.extension == NIFTI:
            write_volume(path, voxels, case.geometry)
            return
        named = segments if form.extension == ".seg.nrrd" else []
        write_nrrd(path, Volume(voxels, case.geometry), named, deflated=form.deflated)

    inputs = [file.sha256, form.dtype, str(form.deflated), json.dumps(organs.names)]
    return review.files.derived(case.id, f"dense{form.extension}", inputs, write)


def multipart_response(text: str, content: bytes, name: str) -> Response:
    """A multipart/form-data response with a text part ``params`` and a file part ``image``."""
    boundary = secrets.token_hex(16)
    body = b"".join(
        (
            f"--{boundary}\r\n"
            'Content-Disposition: form-data; name="params"\r\n'
            f"Content-Type: application/json\r\n\r\n{text}\r\n"
            f"--{boundary}\r\n"
            f'Content-Disposition: form-data; name="image"; filename="{name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n".encode(),
            content,
            f"\r\n--{boundary}--\r\n".encode(),
        )
    )
    return Response(body, media_type=f"multipart/form-data; boundary={boundary}")
