"""The base of every record: a pydantic model that never changes and takes no unknown field; and
what a person is told of one that could not be."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError


class FrozenModel(BaseModel):
    """A value: immutable, hashable by its fields, and strict about their names."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Fault(NamedTuple):
    """What is wrong with a document that was to become a model.

    Attributes:
        place: from the top of the document down; () is all of it.
        expected: the rule that was broken.
        got: what stands there; None where that is nothing, or `expected` says it already.
    """

    place: tuple[int | str, ...]
    expected: str
    got: str | None

    @property
    def where(self) -> str:
        """`place` as people write it: ``organs.3.colour``."""
        return ".".join(map(str, self.place)) or "file"


def first_fault(error: ValidationError) -> Fault:
    """The first fault of those that pydantic found: with it mended, the others are often gone."""
    first = error.errors()[0]
    value = first["input"]
    expected = first["msg"].removeprefix("Value error, ")
    if first["type"] in ("tuple_type", "list_type", "frozen_set_type"):
        expected = f"a list: [{value}]" if isinstance(value, str | int | float) else "a list"
    # A rule of our own names what it found; of a missing field, the input is all that surrounds it.
    told = first["type"] in ("value_error", "missing")
    return Fault(
        place=first["loc"],
        expected=expected,
        # A volume or a file of thousands of lines helps nobody in a message.
        got=None if told else repr(value)[:100],
    )
