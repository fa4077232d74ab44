"""The base of every record: a pydantic model that never changes and takes no unknown field."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class FrozenModel(BaseModel):
    """A value: immutable, hashable by its fields, and strict about their names."""

    model_config = ConfigDict(frozen=True, extra="forbid")
