"""What a person points at: points, scribbles, boxes and lassos, in voxels of the CT."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Final, Self

import numpy as np
from atlas_core.errors import InvalidInput
from atlas_core.records import Case
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_PROMPTS: Final = 64
"""For one shape; each is a prediction where the server has to be told all of them again."""

MAX_PATH: Final = 4096
"""Voxels of one path."""

Index = Annotated[int, Field(ge=0, lt=2**15)]
Voxel = tuple[Index, Index, Index]
Box = tuple[slice, slice, slice]


class PromptKind(StrEnum):
    """The interactions of nnInteractive."""

    POINT = "point"
    SCRIBBLE = "scribble"
    BOX = "box"
    LASSO = "lasso"


_CORNERS: Final = {
    PromptKind.POINT: (1, 1),
    PromptKind.SCRIBBLE: (1, MAX_PATH),
    PromptKind.BOX: (2, 2),
    PromptKind.LASSO: (3, MAX_PATH),
}


class Prompt(BaseModel):
    """One interaction: here is the organ, or (not `positive`) here it is not."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: PromptKind
    positive: bool = True
    path: Annotated[tuple[Voxel, ...], Field(min_length=1, max_length=MAX_PATH)] = Field(
        description="Voxels [i, j, k] of the CT: of a box two corners, both included; of a "
        "scribble or a lasso the way that it was drawn, on one slice of any axis."
    )

    @model_validator(mode="after")
    def _drawn_as_its_kind(self) -> Self:
        least, most = _CORNERS[self.kind]
        if not least <= len(self.path) <= most:
            raise ValueError(f"a {self.kind} has {least} to {most} voxels, got {len(self.path)}")
        if self.kind is not PromptKind.POINT and self._through() is None:
            raise ValueError(f"a {self.kind} lies on one slice")
        return self

    def _through(self) -> int | None:
        """The axis whose slice the path lies on; None: it lies on none."""
        flat = [axis for axis in (2, 1, 0) if len({voxel[axis] for voxel in self.path}) == 1]
        return flat[0] if flat else None

    @property
    def box(self) -> Box:
        """The voxels from the first corner to the last, in any order of the corners."""
        low, high = np.min(self.path, axis=0), np.max(self.path, axis=0)
        i, j, k = (slice(int(a), int(b) + 1) for a, b in zip(low, high, strict=True))
        return i, j, k

    def drawn(self, shape: tuple[int, ...], thickness: int) -> tuple[NDArray[np.uint8], Box]:
        """A lasso with what lies inside, or a scribble as thick as that, as a mask.

        Args:
            shape: of the CT, in voxels.
            thickness: of the line of a scribble, in voxels.

        Returns:
            1 where it was drawn, uint8 ``[i, j, k]`` of a part of the CT, one slice thick; and
            which part that is.
        """
        through = self._through()
        assert through is not None
        across, up = (axis for axis in range(3) if axis != through)
        margin = np.full(3, thickness if self.kind is PromptKind.SCRIBBLE else 0)
        margin[through] = 0
        low = np.maximum(np.min(self.path, axis=0) - margin, 0)
        high = np.minimum(np.max(self.path, axis=0) + margin, np.array(shape) - 1)
        size = high - low + 1
        corners = [(voxel[across] - low[across], voxel[up] - low[up]) for voxel in self.path]
        picture = Image.new("L", (int(size[across]), int(size[up])))
        drawing = ImageDraw.Draw(picture)
        if self.kind is PromptKind.LASSO:
            drawing.polygon(corners, fill=1, outline=1)
        else:
            drawing.line(corners, fill=1, width=thickness)
            drawing.point(corners, fill=1)
        mask = np.expand_dims(np.asarray(picture, np.uint8).T, through)
        i, j, k = (slice(int(a), int(b) + 1) for a, b in zip(low, high, strict=True))
        return mask, (i, j, k)


def require_within(prompts: Sequence[Prompt], case: Case) -> None:
    """Refuse what lies beside the CT.

    Raises:
        InvalidInput: names the first such voxel.
    """
    for prompt in prompts:
        for voxel in prompt.path:
            if any(at >= side for at, side in zip(voxel, case.shape, strict=True)):
                raise InvalidInput(
                    "a prompt does not lie in the CT",
                    case=case.id,
                    expected=f"within {'×'.join(map(str, case.shape))} voxels",
                    got=" ".join(map(str, voxel)),
                )
