"""Ensembles by name: which models work together, in which roles, and on which grid they are fused.

The catalog keeps them with their history; the model server carries an `EnsembleDescription` of each
that is loaded, so that the attention service needs no catalog. Which version of a model serves is
the model's own matter (`atlas_core.triton_parameters`): a promotion changes it in every ensemble.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, model_validator

from atlas_core.errors import InvalidInput
from atlas_core.frozen_model import FrozenModel
from atlas_core.geometry import Float3
from atlas_core.model_spec import ModelName, ModelRef, ensemble_key
from atlas_core.organs import OrganName

DEFAULT_ENSEMBLE = "default"
"""Name of the models in service, as long as nobody has made or changed an ensemble."""

MAX_MEMBERS = 16
"""As many models as one fusion takes."""

FOUND, PROMOTED, ROLLED_BACK = "found in service", "promoted", "rolled back"
SAID_BY_MODELS = (FOUND, PROMOTED, ROLLED_BACK)
"""Actions of changes that no person decided about the ensemble itself: the models in service say
them by themselves."""

EnsembleName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]


class MemberRole(StrEnum):
    """What a member does.

    Attributes:
        VOICE: predicts, and counts in Eq. 1 to 4.
        LOCATOR: only finds where organs can be; at most one of an ensemble.
    """

    VOICE = "voice"
    LOCATOR = "locator"


class Member(FrozenModel):
    """One model of an ensemble, in the version that serves."""

    model: ModelRef
    role: MemberRole = MemberRole.VOICE


class Ensemble(FrozenModel):
    """Models that work together."""

    name: EnsembleName
    members: tuple[Member, ...] = Field(min_length=1, max_length=MAX_MEMBERS)
    fusion_spacing_mm: Float3 | None = Field(
        default=None, description="Grid of the fusion along x, y, z; None: the finest of theirs."
    )
    organs: tuple[OrganName, ...] = Field(default=(), description="That its voices know.")

    @model_validator(mode="after")
    def _plausible(self) -> Self:
        roles = [member.role for member in self.members]
        if len(set(self.names)) != len(self.names):
            raise ValueError("one version per model: a model is named twice")
        if MemberRole.VOICE not in roles or roles.count(MemberRole.LOCATOR) > 1:
            raise ValueError("at least one voice and at most one locator")
        if self.fusion_spacing_mm is not None and not _possible(self.fusion_spacing_mm):
            raise ValueError(f"fusion grid {self.fusion_spacing_mm}: expected 0.1 to 20 mm")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Of the models, voices and locator."""
        return tuple(member.model.name for member in self.members)

    @property
    def voices(self) -> tuple[ModelRef, ...]:
        """The models whose predictions are fused."""
        return tuple(m.model for m in self.members if m.role is MemberRole.VOICE)

    @property
    def key(self) -> str:
        """Of its results; see `ensemble_key`."""
        return ensemble_key(self.voices, self.fusion_spacing_mm)


class EnsembleState(StrEnum):
    """Whether the model server holds an ensemble.

    Attributes:
        IN_USE: it answers when none is named; there is one at a time.
        LOADED: it answers when it is named.
        IDLE: on record only.
        REMOVED: on record only, and no longer to be chosen.
    """

    IN_USE = "in_use"
    LOADED = "loaded"
    IDLE = "idle"
    REMOVED = "removed"


class EnsembleChange(FrozenModel):
    """One entry of an ensemble's history; the newest says how it is now."""

    revision: int = Field(ge=1, description="Rises with every change of any ensemble.")
    ensemble: Ensemble
    state: EnsembleState
    action: str = Field(description="What was done: created, added, removed, used, promoted, …")
    who: str
    why: str = ""
    created_at: datetime


class EnsembleDescription(FrozenModel):
    """What the model server says of an ensemble, as JSON in a parameter of every model."""

    revision: int = Field(ge=1)
    in_use: bool
    members: dict[ModelName, MemberRole] = Field(min_length=1, max_length=MAX_MEMBERS)
    fusion_spacing_mm: Float3 | None = None

    @classmethod
    def of(cls, change: EnsembleChange, revision: int) -> EnsembleDescription:
        """Of an ensemble as it is since `change`; `revision`: the last change of what is said."""
        return cls(
            revision=revision,
            in_use=change.state is EnsembleState.IN_USE,
            members={member.model.name: member.role for member in change.ensemble.members},
            fusion_spacing_mm=change.ensemble.fusion_spacing_mm,
        )


def require_members_fit(
    organs_of: Mapping[str, Iterable[str]], scheme: Iterable[str]
) -> dict[str, tuple[str, ...]]:
    """Organs that members know and the scheme does not, by member; those take no part.

    Args:
        organs_of: organs by model.
        scheme: the organs of the atlas.

    Raises:
        InvalidInput: a member knows no organ of the scheme.

    >>> require_members_fit({"unet": ["liver", "tumour"]}, ["liver", "spleen"])
    {'unet': ('tumour',)}
    """
    known = tuple(scheme)
    outside = {}
    for name, organs in organs_of.items():
        left_out = tuple(organ for organ in organs if organ not in known)
        if len(left_out) == len(tuple(organs)):
            raise InvalidInput(
                f"model {name} knows no organ of this atlas",
                expected=f"some of {', '.join(known)}",
                got=", ".join(left_out),
                remedy="name its organs as the atlas does when you import it",
            )
        if left_out:
            outside[name] = left_out
    return outside


def _possible(spacing_mm: Float3) -> bool:
    return all(0.1 <= spacing <= 20.0 for spacing in spacing_mm)
