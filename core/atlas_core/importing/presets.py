"""Presets: the meaning of label values and file names in known datasets.

The presets themselves are data (``presets.yaml``, with their sources and doubts): the 16 public
datasets of the paper's Table 3, TotalSegmentator v2, AbdomenAtlas and our own phantoms.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, Final, Self

import yaml
from pydantic import Field, field_validator, model_validator

from atlas_core.errors import NotFound
from atlas_core.frozen_model import FrozenModel
from atlas_core.organs import ABDOMEN_ATLAS, OrganName, OrganScheme
from atlas_core.records import Dataset

KIDNEYS: Final = "kidneys"
"""One value or mask for both kidneys: split into left and right on import."""

SIDES: Final = ("kidney_left", "kidney_right")


class LabelMap(FrozenModel):
    """How masks of one dataset become organs; a structure is an organ's name or `KIDNEYS`."""

    labels: Mapping[int, OrganName] = Field(
        default={}, description="Value in a label map → structure; several values join."
    )
    others: frozenset[int] = Field(
        default=frozenset(), description="Values that are known and no organ of ours."
    )
    masks: Mapping[str, OrganName] = Field(
        default={}, description="Name of a mask file without suffix → structure; several join."
    )
    unclear: Mapping[int, str] = Field(
        default={},
        description="Values that leave open where organs are (nobody looked there, a tumour of any "
        "organ) → why. A label map that holds one is left out.",
    )
    partial: bool = Field(
        default=False,
        description="An organ is annotated only in those cases where it occurs. Otherwise a label "
        "map without it says that the patient lacks it.",
    )

    @field_validator("others", mode="before")
    @classmethod
    def _ranges(cls, value: Any) -> Any:
        """ "4, 8-10" → {4, 8, 9, 10}."""
        if not isinstance(value, str):
            return value
        found: set[int] = set()
        for part in value.split(","):
            match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
            if match is None:
                raise ValueError(f"malformed range of label values {part!r}")
            found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
        return found

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        twice = sorted(self.others & set(self.labels))
        if twice:
            raise ValueError(f"label values {twice} are both an organ and none")
        if any(value < 1 for value in (*self.labels, *self.others)):
            raise ValueError("label values begin at 1; 0 is the background")
        for structures in (self.labels.values(), self.masks.values()):
            if KIDNEYS in structures and set(SIDES) & set(structures):
                raise ValueError("kidneys are split only where both sides share a value")
        return self

    @property
    def values(self) -> dict[int, str | None]:
        """Every known value → structure, None for what is no organ of ours."""
        return {**dict.fromkeys(sorted((*self.others, *self.unclear))), **self.labels}

    @property
    def organs(self) -> tuple[str, ...]:
        """Organs that are annotated, each once, sorted."""
        return tuple(sorted(organs_of((*self.labels.values(), *self.masks.values()))))

    def within(self, scheme: OrganScheme) -> LabelMap:
        """The same for a site that works with the organs of `scheme` only."""
        inside = {v: s for v, s in self.labels.items() if set(organs_of([s])) <= set(scheme.names)}
        return LabelMap(
            labels=inside,
            others=self.others | (set(self.labels) - set(inside)),
            masks={n: s for n, s in self.masks.items() if set(organs_of([s])) <= set(scheme.names)},
            unclear=self.unclear,
            partial=self.partial,
        )


class Preset(LabelMap):
    """A known dataset."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="What `--preset` takes.")
    title: str = Field(min_length=1)
    licence: str = Field(min_length=1)

    def dataset(self, name: str, scheme: OrganScheme = ABDOMEN_ATLAS) -> Dataset:
        """The dataset `name` that is imported with this preset."""
        return Dataset(
            name=name,
            title=self.title,
            licence=self.licence,
            organs=self.within(scheme).organs,
            preset=self.name,
        )


def organs_of(structures: tuple[str, ...] | list[str]) -> set[str]:
    """Organs behind structures: `KIDNEYS` stands for both sides."""
    return {organ for s in structures for organ in (SIDES if s == KIDNEYS else (s,))}


@cache
def shipped_presets() -> Mapping[str, Preset]:
    """All presets by name."""
    text = (
        resources.files("atlas_core.importing").joinpath("presets.yaml").read_text(encoding="utf-8")
    )
    return {
        name: Preset.model_validate({"name": name, **entry})
        for name, entry in yaml.safe_load(text).items()
    }


def preset(name: str) -> Preset:
    """The preset called `name`; case, spaces, hyphens and underscores make no difference.

    Raises:
        NotFound: there is none; the message lists them.
    """
    known = {plain_name(key): value for key, value in shipped_presets().items()}
    found = known.get(plain_name(name))
    if found is None:
        raise NotFound(
            f"no preset {name!r}",
            expected=f"one of {', '.join(shipped_presets())}",
            remedy="see --help",
        )
    return found


def scheme_map(scheme: OrganScheme) -> LabelMap:
    """Without a preset: our own label ids and organ names.

    Organs that do not occur in a label map count as not annotated, as nothing declares them absent.
    """
    return LabelMap(
        labels={organ.label: organ.name for organ in scheme},
        masks={organ.name: organ.name for organ in scheme},
        partial=True,
    )


def structure_of(name: str, scheme: OrganScheme) -> str | None:
    """The structure that goes by `name`, or None: "Left Kidney" → ``kidney_left``."""
    words = plain_name(name)
    by_name = {plain_name(organ): organ for organ in scheme.names}
    structure = by_name.get(words) or _SYNONYMS.get(words)
    if structure is None or not organs_of([structure]) <= set(scheme.names):
        return None
    return structure


def plain_name(name: str) -> str:
    """`name` without what people write differently: "Left Kidney" → leftkidney."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


_SYNONYMS: Final = {
    "gallbladder": "gall_bladder",
    "gall": "gall_bladder",
    "leftkidney": "kidney_left",
    "lkidney": "kidney_left",
    "kidneyl": "kidney_left",
    "rightkidney": "kidney_right",
    "rkidney": "kidney_right",
    "kidneyr": "kidney_right",
    "kidney": KIDNEYS,
    "kidneys": KIDNEYS,
    "inferiorvenacava": "postcava",
    "ivc": "postcava",
    "venacava": "postcava",
    "arota": "aorta",  # so spelt in the dataset.json of AMOS22
}
"""Other names of the default organs, as `plain_name` writes them."""
