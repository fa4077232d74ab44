"""Kinds of label errors: the taxonomy of the paper (Fig. 5a, §4.2)."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from atlas_core.errors import InvalidInput
from atlas_core.frozen_model import FrozenModel


class ErrorGroup(StrEnum):
    """Origin of an error."""

    PSEUDO_LABEL = "pseudo_label"
    """Made by the models."""
    GROUND_TRUTH = "ground_truth"
    """In the human labels that the models were trained on."""


ErrorCode = Annotated[str, Field(pattern=r"^[a-z][a-z_]{0,62}$")]


class ErrorType(FrozenModel):
    """One kind of error."""

    code: ErrorCode
    group: ErrorGroup
    title: str
    description: str


def _error(group: ErrorGroup, code: str, title: str, description: str) -> ErrorType:
    return ErrorType(code=code, group=group, title=title, description=description)


ERROR_TYPES = (
    _error(
        ErrorGroup.PSEUDO_LABEL,
        "missing_cavity",
        "Missing cavity",
        "The inside of a hollow organ is left out, as the cavity of the stomach (Fig. 5b).",
    ),
    _error(
        ErrorGroup.PSEUDO_LABEL,
        "missed_enlargement",
        "Missed enlargement",
        "An enlarged organ is cut short: a pancreas tail with a tumour, a wide gallbladder "
        "(Fig. 5b).",
    ),
    _error(
        ErrorGroup.PSEUDO_LABEL,
        "irregular_shape",
        "Irregular shape",
        "The shape of the organ is unusual for another reason: variant anatomy, after surgery.",
    ),
    _error(
        ErrorGroup.PSEUDO_LABEL,
        "contrast_difference",
        "Contrast difference",
        "Contrast enhancement or its phase differs from what the models were trained on.",
    ),
    _error(
        ErrorGroup.PSEUDO_LABEL,
        "scanner_difference",
        "Scanner difference",
        "Scanner, protocol or reconstruction differ: noise, slice thickness, artefacts.",
    ),
    _error(
        ErrorGroup.PSEUDO_LABEL,
        "other_pseudo_label",
        "Other error of the models",
        "None of the above; say in the note what it is.",
    ),
    _error(
        ErrorGroup.GROUND_TRUTH,
        "ambiguous_boundary",
        "Ambiguous boundary",
        "Where the organ or its tumour ends cannot be told; one annotator varies (Fig. 5c).",
    ),
    _error(
        ErrorGroup.GROUND_TRUTH,
        "protocol_difference",
        "Protocol difference",
        "Institutes label by different guidelines; annotators differ (Fig. 5c).",
    ),
    _error(
        ErrorGroup.GROUND_TRUTH,
        "other_ground_truth",
        "Other error of the human label",
        "None of the above; say in the note what it is.",
    ),
)
"""The kinds that annotators choose from, pseudo-label errors first."""


def require_error_type(code: str) -> str:
    """`code`, if it is one of `ERROR_TYPES`.

    Raises:
        InvalidInput: it is not.
    """
    known = [error.code for error in ERROR_TYPES]
    if code not in known:
        raise InvalidInput("unknown error type", expected=f"one of {', '.join(known)}", got=code)
    return code
