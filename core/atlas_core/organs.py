"""Organs and their label ids: the vocabulary that every mask, model, table and page shares.

Which organs an atlas has is configuration: everything that needs organs takes an `OrganScheme`. The
catalog remembers the scheme of its atlas (`Catalog.organ_scheme`). Some ship with us
(``schemes/*.yaml``); a site writes its own file of that form.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from atlas_core.errors import ConfigurationError, Conflict, UnknownLabel
from atlas_core.frozen_model import Fault, FrozenModel, first_fault

BACKGROUND = 0
"""Label id of voxels that belong to no organ."""

MAX_FILE_BYTES: Final = 1 << 20
"""Of a file with an organ scheme; 255 organs have some 40 kB."""

_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's, where PyYAML was built with it: ten times as fast."""

_SIDES: Final = {"left": "left", "l": "left", "right": "right", "r": "right"}


def _organ_name(name: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", name):
        raise ValueError(
            f"organ name {name!r}: expected lower-case letters, digits and underscores"
        )
    return name


OrganName = Annotated[str, AfterValidator(_organ_name)]


def plain_name(name: str) -> str:
    """`name` without case and separators, by which names are compared.

    >>> plain_name("Left Kidney") == plain_name("left_kidney")
    True
    """
    return re.sub(r"[^a-z0-9]", "", name.lower())


class SnomedConcept(FrozenModel):
    """What an organ is in SNOMED CT, as DICOM writes it."""

    code: str = Field(pattern=r"^[1-9][0-9]{5,17}$", description="Concept id.")
    meaning: str = Field(min_length=1, max_length=64, description="The concept in words.")
    side: Literal["left", "right"] | None = Field(
        default=None, description="Laterality, where the concept itself does not say it."
    )


class Organ(FrozenModel):
    """One annotated structure."""

    name: OrganName = Field(description="Identifier in files, tables and on the wire.")
    label: int = Field(ge=1, le=255, description="Voxel value in a combined label map (uint8).")
    colour: str = Field(pattern=r"^#[0-9a-f]{6}$", description="Display colour, sRGB hex.")
    aliases: tuple[str, ...] = Field(
        default=(),
        description="What datasets and models call it; case, blanks and underscores make no "
        "difference. One that both partners have means both, which are told apart by side.",
    )
    partner: OrganName | None = Field(
        default=None, description="The same organ on the other side of the body."
    )
    group: str = Field(default="", description="Organs that are looked at together.")
    volume_ml: tuple[float, float] | None = Field(
        default=None, description="Typical of adults whose organ is whole in the scan."
    )
    snomed: SnomedConcept | None = Field(
        default=None, description="How the organ is named in DICOM; without it, by a private code."
    )
    centre_mm: tuple[float, float, float] | None = Field(
        default=None,
        description="Where its centre typically lies: to the right, front and head of the first "
        "lumbar vertebra.",
    )
    holds_air: bool = Field(
        default=False, description="Air and gas inside belong to it, as in lungs and bowel."
    )

    @model_validator(mode="after")
    def _plausible(self) -> Self:
        if self.partner is not None and self.side is None:
            raise ValueError(f"{self.name} has a partner: its name must say left or right")
        if self.volume_ml is not None and not 0 <= self.volume_ml[0] < self.volume_ml[1]:
            raise ValueError(f"volume_ml of {self.name}: expected 0 <= lower < upper")
        return self

    @property
    def title(self) -> str:
        """Human-readable name: `kidney_left` is shown as "kidney left"."""
        return self.name.replace("_", " ")

    @property
    def side(self) -> Literal["left", "right"] | None:
        """The patient's side, as the name says it."""
        said = {_SIDES[word] for word in self.name.split("_") if word in _SIDES}
        return "left" if said == {"left"} else "right" if said == {"right"} else None


class OrganScheme(FrozenModel):
    """Organs with distinct names and label ids; their order is the channel order."""

    name: str = Field(
        default="custom", pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$", description="For people."
    )
    organs: tuple[Organ, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        columns = {"name": list(self.names), "label": [str(label) for label in self.labels]}
        for what, values in columns.items():
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise ValueError(f"organ {what} used twice: {', '.join(twice)}")
        by_name = {organ.name: organ for organ in self.organs}
        for organ in self.organs:
            partner = by_name.get(organ.partner) if organ.partner is not None else None
            if organ.partner is not None and partner is None:
                raise ValueError(f"partner {organ.partner} of {organ.name} is no organ here")
            if partner is not None and (partner.partner != organ.name or partner is organ):
                raise ValueError(f"partner {partner.name} of {organ.name} does not point back")
            if partner is not None and partner.side == organ.side:
                raise ValueError(f"{organ.name} and {partner.name} are on the same side")
        for alias, meant in _by_plain_name(self.organs).items():
            if len(meant) > 2 or (len(meant) == 2 and meant[0].partner != meant[1].name):
                names = ", ".join(organ.name for organ in meant)
                raise ValueError(f"{alias!r} means several organs that are no partners: {names}")
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

    @property
    def digest(self) -> str:
        """SHA-256 of ids and names: what voxel values mean. Colours and aliases do not count."""
        meaning = sorted((organ.label, organ.name) for organ in self.organs)
        return hashlib.sha256(json.dumps(meaning).encode()).hexdigest()

    def __str__(self) -> str:
        return f"{self.name} ({len(self)} organs, {self.digest[:8]})"

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

    def called(self, name: str) -> tuple[Organ, ...]:
        """What datasets or models mean by `name`: one organ, left and right partner, or none.

        >>> scheme = read_scheme("abdomen_atlas_1_0")
        >>> [organ.name for organ in scheme.called("Right Kidney")]
        ['kidney_right']
        >>> [organ.name for organ in scheme.called("kidneys")]
        ['kidney_left', 'kidney_right']
        >>> scheme.called("duodenum")
        ()
        """
        meant = _by_plain_name(self.organs).get(plain_name(name), ())
        return tuple(sorted(meant, key=lambda organ: organ.side or ""))  # left before right

    def select(self, names: tuple[str, ...] | list[str]) -> OrganScheme:
        """The organs called `names`, in that order.

        What is left of a pair has no partner, and no name that meant both.
        """
        return OrganScheme(
            name=self.name, organs=tuple(self._alone(self[name], names) for name in names)
        )

    def _alone(self, organ: Organ, names: tuple[str, ...] | list[str]) -> Organ:
        if organ.partner is None or organ.partner in names:
            return organ
        shared = set(map(plain_name, self[organ.partner].aliases))
        own = tuple(alias for alias in organ.aliases if plain_name(alias) not in shared)
        return organ.model_copy(update={"partner": None, "aliases": own})

    def require_same(self, other: OrganScheme, *, this: str, that: str, remedy: str) -> None:
        """Raise `ConfigurationError` unless `other` gives every voxel value the same meaning.

        Args:
            this, that: who has the one scheme and who the other: "the atlas", "this service".
        """
        if self.digest != other.digest:
            raise ConfigurationError(
                f"{this} and {that} have different organs",
                expected=str(self),
                got=str(other),
                remedy=remedy,
            )

    def require_extends(self, before: OrganScheme) -> None:
        """Raise `Conflict` unless all that `before` says about ids and names holds here, too."""
        ours = {organ.name: organ.label for organ in self.organs}
        for organ in before:
            if ours.get(organ.name) != organ.label:
                raise Conflict(
                    "organs of an atlas keep their names and ids",
                    expected=f"{organ.name} with id {organ.label}, as in {before}",
                    got=f"id {ours[organ.name]}" if organ.name in ours else "no such organ",
                    remedy="add organs with new ids, or make a new atlas",
                )

    def as_yaml(self) -> str:
        """The scheme as a file that `read_scheme` reads, one organ a line."""
        lines = [
            yaml.safe_dump(
                organ.model_dump(mode="json", exclude_defaults=True),
                default_flow_style=True,
                sort_keys=False,
                width=float("inf"),
            ).strip()
            for organ in self.organs
        ]
        return "\n".join([f"name: {self.name}", "organs:", *(f"  - {line}" for line in lines), ""])


@lru_cache(maxsize=16)
def _by_plain_name(organs: tuple[Organ, ...]) -> Mapping[str, tuple[Organ, ...]]:
    """Names win over aliases: an organ is what bears the name itself."""
    named = {plain_name(organ.name): (organ,) for organ in organs}
    aliases: dict[str, tuple[Organ, ...]] = {}
    for organ in organs:
        for alias in dict.fromkeys(map(plain_name, organ.aliases)):
            aliases[alias] = (*aliases.get(alias, ()), organ)
    return aliases | named


def shipped_schemes() -> tuple[str, ...]:
    """Names of the schemes that ship with us."""
    folder = resources.files("atlas_core").joinpath("schemes")
    return tuple(sorted(file.name[:-5] for file in folder.iterdir() if file.name.endswith(".yaml")))


def read_scheme(name_or_path: str | Path) -> OrganScheme:
    """A scheme that ships with us, by name; or one of a site's own, from a YAML file.

    Raises:
        ConfigurationError: neither; or a file that says something else, with the place.
    """
    name = str(name_or_path)
    if name in shipped_schemes():
        file = resources.files("atlas_core").joinpath("schemes", f"{name}.yaml")
        return _scheme_of(file.read_bytes(), f"{name}.yaml")
    path = Path(name_or_path).expanduser()
    try:
        with path.open("rb") as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"no organ scheme {name!r}",
            expected=f"one of {', '.join(shipped_schemes())}, or a YAML file",
            got=getattr(error, "strerror", None) or "no path",
        ) from None
    if len(content) > MAX_FILE_BYTES:
        raise ConfigurationError(
            "a file of organs is small", case=path.name, expected=f"at most {MAX_FILE_BYTES} bytes"
        )
    return _scheme_of(content, path.name)


def _scheme_of(content: bytes, file: str) -> OrganScheme:
    try:
        document: Any = yaml.load(content, _LOADER)  # noqa: S506  both are safe
        if isinstance(document, dict):
            document.setdefault("name", file.rpartition(".")[0] or file)
        return OrganScheme.model_validate(document)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        got = " ".join(str(error).split())[:200]
        raise ConfigurationError("the organ scheme cannot be read", case=file, got=got) from None
    except ValidationError as error:
        fault = first_fault(error)
        raise ConfigurationError(
            f"the organ scheme cannot work: {_place(fault, document)}",
            case=file,
            expected=fault.expected,
            got=fault.got,
            remedy="see docs/how-to/define-organs.md",
        ) from None


def _place(fault: Fault, document: Any) -> str:
    """Where in the file, with the organ by its name where it has one: ``organs.liver.colour``."""
    match fault.place:
        case ("organs", number, *inside):
            entry = document["organs"][number]
            if isinstance(entry, dict) and "name" in entry:
                return ".".join(map(str, ("organs", entry["name"], *inside)))
    return fault.where


def _setting(value: Any) -> Any:
    """A setting's text: JSON, the name of a shipped scheme, or the path of a file."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("{"):
        return json.loads(value)
    try:
        return read_scheme(value)
    except ConfigurationError as error:
        raise ValueError(str(error)) from None


SchemeSetting = Annotated[OrganScheme, BeforeValidator(_setting)]
"""An organ scheme as settings take it: a shipped name, a YAML file's path, or JSON."""


ABDOMEN_ATLAS = read_scheme("abdomen_atlas_1_0")
"""The nine structures of AbdomenAtlas 1.0 with the label ids of its release."""
