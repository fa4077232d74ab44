"""Presets: the meaning of label values and file names in known datasets.

The presets themselves are data (``presets.yaml``, with their sources and doubts): the 16 public
datasets of the paper's Table 3, TotalSegmentator v2, AbdomenAtlas and our own phantoms. A site has
files of its own with the same keys. They name structures; which organs these are, the scheme of the
atlas says, by its names and aliases.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final, Self

import yaml
from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from atlas_core.errors import InvalidInput, NotFound
from atlas_core.frozen_model import FrozenModel, first_fault
from atlas_core.organs import (
    OrganName,
    OrganScheme,
    plain_name,
    read_scheme,
    shipped_schemes,
)
from atlas_core.records import Dataset
from atlas_core.regular_files import read_small

MAX_FILE_BYTES: Final = 1 << 20
"""Of a preset's file; the largest that ships has some 6 kB."""

Structure = tuple[OrganName, ...]
"""What one value or mask shows: an organ; or left and right, which are split on import."""

Meaning = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    Field(min_length=1),
]
"""A name of what is shown; or several, of which the first counts that the scheme has."""


class LabelMap(FrozenModel):
    """How masks of one dataset become organs of one scheme."""

    labels: Mapping[int, Structure] = Field(
        default={}, description="Value in a label map → structure; several values join."
    )
    others: frozenset[int] = Field(
        default=frozenset(), description="Values that are known and no organ of the scheme."
    )
    masks: Mapping[str, Structure] = Field(
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

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for structures in (set(self.labels.values()), set(self.masks.values())):
            halves = {organ for pair in structures if len(pair) > 1 for organ in pair}
            both = sorted(halves & {structure[0] for structure in structures if len(structure) < 2})
            if both:
                raise ValueError(f"{', '.join(both)}: by itself, and in a value of both sides")
        return self

    @property
    def values(self) -> dict[int, Structure | None]:
        """Every known value → structure, None for what is no organ of the scheme."""
        return {**dict.fromkeys(sorted((*self.others, *self.unclear))), **self.labels}

    @property
    def organs(self) -> tuple[str, ...]:
        """Organs that are annotated, each once, sorted."""
        return tuple(sorted({o for s in (*self.labels.values(), *self.masks.values()) for o in s}))


class Preset(FrozenModel):
    """A known dataset."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="What `--preset` takes.")
    title: str = Field(min_length=1)
    licence: str = Field(min_length=1)
    labels: Mapping[int, Meaning] = Field(
        default={}, description="Value in a label map → what it shows."
    )
    others: frozenset[int] = Field(
        default=frozenset(), description="Values that are no organ in any scheme: “4, 8-51”."
    )
    masks: Mapping[str, Meaning] = Field(
        default={}, description="Name of a mask file without suffix → what it shows."
    )
    partial: bool = Field(default=False, description="See `LabelMap`.")

    @field_validator("others", mode="before")
    @classmethod
    def _ranges(cls, value: Any) -> Any:
        """ "4, 8-10" → {4, 8, 9, 10}."""
        if not isinstance(value, str):
            return value
        found: set[int] = set()
        for part in value.split(","):
            match = re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*", part)
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
        return self

    def within(self, scheme: OrganScheme) -> LabelMap:
        """What the dataset's values and masks mean to an atlas with the organs of `scheme`.

        Raises:
            InvalidInput: one value means both sides of an organ, and another one of them.
        """
        labels = {value: structure_of(names, scheme) for value, names in self.labels.items()}
        masks = {file: structure_of(names, scheme) for file, names in self.masks.items()}
        try:
            return LabelMap(
                labels={value: structure for value, structure in labels.items() if structure},
                others=self.others | {value for value, found in labels.items() if not found},
                masks={file: structure for file, structure in masks.items() if structure},
                partial=self.partial,
            )
        except ValidationError as error:
            raise InvalidInput(
                f"preset {self.name} does not go with organ scheme {scheme.name}",
                expected=first_fault(error).expected,
                remedy="choose another, or organs that it knows",
            ) from None

    def misspelt(self, scheme: OrganScheme) -> tuple[str, ...]:
        """Names that neither `scheme` nor one that ships with us knows, sorted."""
        known = (scheme, *map(read_scheme, shipped_schemes()))
        names = {name for m in (*self.labels.values(), *self.masks.values()) for name in m}
        return tuple(sorted(n for n in names if not any(one.called(n) for one in known)))

    def dataset(self, name: str, scheme: OrganScheme) -> Dataset:
        """The dataset `name` that is imported with this preset."""
        return Dataset(
            name=name,
            title=self.title,
            licence=self.licence,
            organs=self.within(scheme).organs,
            preset=self.name,
        )


def structure_of(names: tuple[str, ...] | str, scheme: OrganScheme) -> Structure:
    """What the first of `names` means that `scheme` knows: "Left Kidney" → ``kidney_left``, a
    name of both sides → left and right; () for what is no organ of it."""
    for name in (names,) if isinstance(names, str) else names:
        found = scheme.called(name)
        if found:
            return tuple(organ.name for organ in found)
    return ()


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
    """The preset called `name` (case, spaces, hyphens and underscores make no difference), or that
    in the YAML file of this path.

    Raises:
        NotFound: there is none; the message lists those that ship with us.
        InvalidInput: the file is no preset, with the place.
    """
    known = {plain_name(key): value for key, value in shipped_presets().items()}
    found = known.get(plain_name(name))
    path = Path(name).expanduser()
    if found is None and path.suffix in (".yaml", ".yml") and path.is_file():
        return _read_preset(path)
    if found is None:
        raise NotFound(
            f"no preset {name!r}",
            expected=f"one of {', '.join(shipped_presets())}, or a YAML file",
            remedy="a preset of one's own is given by its file, each time",
        )
    return found


def _read_preset(path: Path) -> Preset:
    try:
        document: Any = yaml.safe_load(read_small(path, MAX_FILE_BYTES))
        if isinstance(document, dict):
            document = {"name": re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-")} | document
        return Preset.model_validate(document)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        got = " ".join(str(error).split())[:200]
        raise InvalidInput(
            "the preset cannot be read",
            case=path.name,
            got=got,
            remedy="correct it there; `atlasloop presets` shows those that ship",
        ) from None
    except ValidationError as error:
        fault = first_fault(error)
        raise InvalidInput(
            f"the preset cannot work: {fault.where}",
            case=path.name,
            expected=fault.expected,
            got=fault.got,
            remedy="see docs/how-to/define-organs.md",
        ) from None


def scheme_map(scheme: OrganScheme, masks: Iterable[str]) -> LabelMap:
    """Without a preset: our own label ids, and the names and aliases of our organs.

    Organs that do not occur in a label map count as not annotated, as nothing declares them absent.

    Args:
        masks: names of the mask files that there are.
    """
    # An organ's own name comes first: several names of one organ are the organ and lesions in it.
    names = sorted(masks, key=lambda name: (name not in scheme, name))
    found = {name: structure for name in names if (structure := structure_of(name, scheme))}
    single = {structure[0] for structure in found.values() if len(structure) == 1}
    return LabelMap(
        labels={organ.label: (organ.name,) for organ in scheme},
        # Where the sides have masks of their own, one of both adds nothing.
        masks={
            name: structure
            for name, structure in found.items()
            if len(structure) == 1 or not single & set(structure)
        },
        partial=True,
    )
