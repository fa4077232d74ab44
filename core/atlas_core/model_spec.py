"""The specification of a served model: written on export, carried by Triton.

The graph itself holds its preprocessing and its head, so that a client sends Hounsfield units and
receives bytes:

    input  ``ct``    float32 ``[batch, 1, z, y, x]``      Hounsfield units on the model's grid
    output ``soft``  uint8   ``[batch, organ, z, y, x]``  round(255 · p), p in [0, 1]

The grid is canonical (RAS+).

Spatial axes run z, y, x because a NIfTI file stores x fastest: a slab along z is one run of bytes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from atlas_core.errors import InvalidInput
from atlas_core.frozen_model import FrozenModel
from atlas_core.geometry import Float3, Shape3
from atlas_core.organs import OrganName, OrganScheme

INPUT_NAME = "ct"
OUTPUT_NAME = "soft"

MAX_MODEL_STREAMS = 4
"""Default limit of windows that a model on a CPU works on at once (decision 24)."""

MAX_MEMBER_OVERLAP = 0.75
"""Of neighbouring windows: beyond it 64 predictions per voxel become 125, and quantised weights of
a window may all be zero (`atlas_attention.fusion.windows`)."""

MAX_PATCH_VOXELS = 1 << 25
"""Of one window, whatever the CT's size: 320³, twice the largest that nnU-Net plans for a GPU of
40 GB; a window of Hounsfield units takes 128 MiB then."""

Resampling = Literal["linear", "nnunet"]
"""How a CT is brought to a model's grid: ``linear`` with antialiasing, as in `imaging.resampling`;
``nnunet``: cubic splines, and nearest neighbour across thick slices, as nnU-Net prepares a case."""

Windows = Literal["body", "volume"]
"""Where a model looks: ``body``, in even steps over the box of the body; ``volume``, over all of
the CT, every window where nnU-Net's own predictor lays it."""

ModelName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


Padding = float | Literal["edge"]
"""What a window holds beyond a CT that does not fill it; edge: the nearest voxel."""


class ModelSpec(FrozenModel):
    """One version of one exported model."""

    name: ModelName = Field(description="Name in Triton, one per architecture.")
    version: int = Field(
        ge=0, description="t of M_t: 0 is trained from scratch. Triton version t + 1."
    )
    architecture: str = Field(min_length=1, description="swin_unetr, nnunet, unet, …")
    organs: tuple[OrganName, ...] = Field(min_length=1, description="Output channels, in order.")
    spacing_mm: Float3 = Field(description="Grid the model works on: spacing along x, y, z (mm).")
    patch: Shape3 = Field(description="Window along x, y, z in voxels of that grid.")
    hu_window: tuple[float, float] = Field(
        description="Hounsfield units that the graph clips to; below the lower one all is air."
    )
    activation: Literal["sigmoid", "softmax"] = "sigmoid"
    sha256: Sha256 = Field(description="Of the ONNX file.")
    # Left out of the JSON where they are not set: a description from before reads as it did.
    overlap: float | None = Field(
        default=None,
        ge=0,
        le=MAX_MEMBER_OVERLAP,
        exclude_if=lambda overlap: overlap is None,
        description="Of neighbouring windows, as a share of the patch; None: the service's own.",
    )
    mirrored: bool = Field(
        default=False,
        exclude_if=lambda mirrored: not mirrored,
        description="Predict each window in all eight mirrorings and average, as nnU-Net does.",
    )
    resampling: Resampling = Field(
        default="linear",
        exclude_if=lambda resampling: resampling == "linear",
        description="How the CT is brought to the model's grid.",
    )
    windows: Windows = Field(
        default="body",
        exclude_if=lambda windows: windows == "body",
        description="Where the model's windows lie: over the body, or over the whole volume as "
        "nnU-Net's.",
    )
    padding_hu: Padding | None = Field(
        default=None,
        exclude_if=lambda padding_hu: padding_hu is None,
        description="Hounsfield units beyond a CT that is smaller than a window; edge: those of "
        "its nearest voxel; None: air.",
    )

    @model_validator(mode="after")
    def _plausible(self) -> Self:
        if not self.hu_window[0] < self.hu_window[1]:
            raise ValueError(f"hu_window {self.hu_window}: expected lower < upper")
        if min(self.spacing_mm) <= 0 or min(self.patch) < 1:
            raise ValueError(f"spacing {self.spacing_mm} and patch {self.patch} must be positive")
        if self.patch[0] * self.patch[1] * self.patch[2] > MAX_PATCH_VOXELS:
            raise ValueError(f"patch {self.patch}: expected at most {MAX_PATCH_VOXELS} voxels")
        if len(set(self.organs)) != len(self.organs):
            raise ValueError(f"organs named twice: {self.organs}")
        return self

    @property
    def triton_version(self) -> int:
        """Version folder in the Triton repository (Triton counts from 1)."""
        return self.version + 1

    @property
    def ref(self) -> ModelRef:
        return ModelRef(name=self.name, version=self.version, sha256=self.sha256)


class ModelRef(FrozenModel):
    """Names the model that produced something, unambiguously even if a version was rebuilt."""

    name: ModelName
    version: int = Field(ge=0)
    sha256: Sha256

    def __str__(self) -> str:
        return f"{self.name}@{self.version}-{self.sha256[:8]}"

    @classmethod
    def parse(cls, text: str) -> tuple[str, int | None]:
        """``"unet"`` → ("unet", None: no version named); ``"unet@2"`` → ("unet", 2).

        Raises:
            InvalidInput: `text` has another form.
        """
        match = re.fullmatch(r"([a-z][a-z0-9_]{0,62})(?:@(\d{1,6}))?", text)
        if match is None:
            raise InvalidInput("malformed model reference", expected="NAME or NAME@T", got=text)
        return match[1], None if match[2] is None else int(match[2])


def parse_ensemble(references: Sequence[str]) -> dict[str, int | None]:
    """The models that `references` name, in that order, each with its version or None.

    An ensemble holds one version per model: with two of them Eq. 1 and 2 would count one
    architecture twice.

    Args:
        references: ``"unet"`` or ``"unet@2"``; see `ModelRef.parse`.

    Raises:
        InvalidInput: a malformed reference, or a model named twice, in whatever versions.

    >>> parse_ensemble(["unet@2", "nnunet"])
    {'unet': 2, 'nnunet': None}
    """
    ensemble = dict(ModelRef.parse(reference) for reference in references)
    if len(ensemble) != len(references):
        raise InvalidInput(
            "an ensemble holds one version per model",
            expected="no model named twice",
            got=", ".join(references),
        )
    return ensemble


def ensemble_organs(specs: Sequence[ModelSpec], scheme: OrganScheme) -> tuple[OrganName, ...]:
    """The organs of `scheme` that at least one of the models knows, in the order of the scheme;
    of models with one list of organs in the order of that list."""
    lists = {tuple(organ for organ in spec.organs if organ in scheme) for spec in specs}
    if len(lists) == 1:
        return lists.pop()
    known = {organ for organs in lists for organ in organs}
    return tuple(name for name in scheme.names if name in known)


def ensemble_key(
    refs: tuple[ModelRef, ...] | list[ModelRef], fusion_spacing_mm: Float3 | None = None
) -> str:
    """Name of an ensemble, independent of the order of its models: ``nnunet@0-1a2b3c4d+unet@0-…``.

    Used as the folder of its predictions, and to see whether it has scored a case already. A fusion
    grid that was chosen makes other results: it stands at the end, as ``+grid-1.5-1.5-3``.
    """
    key = "+".join(sorted(str(ref) for ref in refs))
    if fusion_spacing_mm is None:
        return key
    return f"{key}+grid-{'-'.join(f'{spacing:g}' for spacing in fusion_spacing_mm)}"
