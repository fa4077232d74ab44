"""The interactive model of the MONAI Label protocol: clicks, as 3D Slicer's extension sends them
for a model of the type "deepgrow", and the mask that an nnInteractive server makes of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from atlas_core.errors import InvalidInput
from atlas_core.imaging import Volume, write_nrrd, write_volume
from atlas_core.records import Case
from fastapi import Response
from numpy.typing import NDArray
from pydantic import ValidationError

from atlas_review.api import mask_of_prompts
from atlas_review.monai_label.results import NIFTI, ResultForm, multipart_response
from atlas_review.prompts import MAX_PROMPTS, Prompt, PromptKind
from atlas_review.service import Review

INTERACTIVE: Final = "nninteractive"

WHOLE: Final = ".seg.nrrd"
"""3D Slicer puts such a file in the place of all its segments: the others would be gone."""


def interactive_model(labels: Sequence[str]) -> dict[str, Any]:
    """What `/info` says of it."""
    return {
        INTERACTIVE: {
            "type": "deepgrow",
            "labels": list(labels),
            "dimension": 3,
            "description": "nnInteractive: a mask from points inside and outside",
            "config": {},
        }
    }


async def mask_of_points(
    review: Review, who: str, case: Case, params: Mapping[str, Any]
) -> Response:
    """The mask of `label`, with voxel value 1, from the voxels in `foreground` and `background`.

    Raises:
        InvalidInput: points that cannot be read, or none; a form that is not offered.
        InvalidInput, LimitExceeded, Conflict, Unavailable: as `PromptSessions.mask`.
    """
    form = ResultForm.read(params)
    if form.extension == WHOLE:
        raise InvalidInput(
            "result_extension is not offered", expected=f"{NIFTI} or .nrrd", got=form.extension
        )
    mask = await mask_of_prompts(review, who, case, _prompts(params))
    content = await review.on_volume(_encoded, case, mask, form)
    label = params.get("label")
    names = {label if isinstance(label, str) else "label": 1}
    text = json.dumps({"label_names": names, "params": {"label_names": names}})
    return multipart_response(text, content, f"{case.id}{form.extension}")


def _prompts(params: Mapping[str, Any]) -> list[Prompt]:
    """Points inside come first, as the protocol does not say in which order they were clicked."""
    given = [(params.get("foreground") or [], True), (params.get("background") or [], False)]
    try:
        prompts = [
            Prompt(kind=PromptKind.POINT, positive=positive, path=(tuple(voxel),))
            for voxels, positive in given
            for voxel in voxels[: MAX_PROMPTS + 1]
        ]
    except (ValidationError, TypeError, KeyError):
        raise InvalidInput(
            "points cannot be read", expected="foreground and background as [[i, j, k]]"
        ) from None
    if not 0 < len(prompts) <= MAX_PROMPTS:
        raise InvalidInput(
            "too few or too many points", expected=f"1 to {MAX_PROMPTS}", got=str(len(prompts))
        )
    return prompts


def _encoded(case: Case, mask: NDArray[np.uint8], form: ResultForm) -> bytes:
    voxels = np.asfortranarray(mask.astype(form.dtype))
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"mask{form.extension}"
        if form.extension == NIFTI:
            write_volume(path, voxels, case.geometry)
        else:
            write_nrrd(path, Volume(voxels, case.geometry), [], deflated=form.deflated)
        return path.read_bytes()
