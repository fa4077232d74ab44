"""Organs and their label ids: the vocabulary that every mask, model, table and page shares.

The default nine and their ids are those of the AbdomenAtlas 1.0 release. A site may work with
others: everything that needs organs takes an `OrganScheme`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from atlas_core.errors import UnknownLabel
from atlas_core.frozen_model import FrozenModel

BACKGROUND = 0
"""Label id of voxels that belong to no organ."""


def _organ_name(name: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", name):
        raise ValueError(
            f"organ name {name!r}: expected lower-case letters, digits and underscores"
        )
    return name


OrganName = Annotated[str, AfterValidator(_organ_name)]


class Organ(FrozenModel):
    """One annotated structure."""

    name: OrganName = Field(description="Identifier in files, tables and on the wire.")
    label: int = Field(ge=1, le=255, description="Voxel value in a combined label map (uint8).")
    colour: str = Field(pattern=r"^#[0-9a-f]{6}$", description="Display colour, sRGB hex.")

    @property
    def title(self) -> str:
        """Human-readable name: `kidney_left` is shown as "kidney left"."""
        return self.name.replace("_", " ")


class OrganScheme(FrozenModel):
    """Organs with distinct names and label ids; their order is the channel order."""

    organs: tuple[Organ, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> OrganScheme:
        columns = {"name": list(self.names), "label": [str(label) for label in self.labels]}
        for what, values in columns.items():
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise ValueError(f"organ {what} used twice: {', '.join(twice)}")
        return self

    def __iter__(self) -> Iterator[Organ]:  # type: ignore[override]
        return iter(self.organs)

    def __len__(self) -> int:
        return len(self.organs)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(organ.name for organ in self.organs)

    @property
    def labels(self) -> tuple[int, ...]:
        return tuple(organ.label for organ in self.organs)

    def __getitem__(self, name: str) -> Organ:
        """The organ called `name`.

        Raises:
            UnknownLabel: no organ of this scheme has that name.
        """
        for organ in self.organs:
            if organ.name == name:
                return organ
        raise UnknownLabel(
            f"unknown organ {name!r}", expected=f"one of {', '.join(self.names)}", got=name
        )

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def select(self, names: tuple[str, ...] | list[str]) -> OrganScheme:
        """The organs called `names`, in that order."""
        return OrganScheme(organs=tuple(self[name] for name in names))


ABDOMEN_ATLAS = OrganScheme(
    organs=(
        Organ(name="aorta", label=1, colour="#e6194b"),
        Organ(name="gall_bladder", label=2, colour="#3cb44b"),
        Organ(name="kidney_left", label=3, colour="#f58231"),
        Organ(name="kidney_right", label=4, colour="#ffb000"),
        Organ(name="liver", label=5, colour="#a05195"),
        Organ(name="pancreas", label=6, colour="#ffe119"),
        Organ(name="postcava", label=7, colour="#4363d8"),
        Organ(name="spleen", label=8, colour="#42d4f4"),
        Organ(name="stomach", label=9, colour="#9a6324"),
    )
)
"""The nine structures of AbdomenAtlas 1.0 with the label ids of its release."""
