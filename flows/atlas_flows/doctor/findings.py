"""What a check finds, and what a failure of it means."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum

from atlas_core.errors import AtlasError
from atlas_core.frozen_model import FrozenModel
from pydantic import Field


class Condition(StrEnum):
    GOOD = "good"
    DOUBTFUL = "doubtful"
    """It works, and will not for ever, or could not be examined."""
    WRONG = "wrong"


class SiteFinding(FrozenModel):
    """What one check found."""

    check: str = Field(description="What was examined.")
    condition: Condition
    found: str = Field(description="In words; no patient data.")
    remedy: str = Field(default="", description="What to do; empty where all is well.")
    figures: dict[str, float] = Field(default_factory=dict, description="What was measured.")


Check = Callable[[], SiteFinding | Iterable[SiteFinding]]


def examine(name: str, check: Check) -> Iterator[SiteFinding]:
    """The findings of a check; one that fails is a finding, too."""
    try:
        found = check()
        yield from [found] if isinstance(found, SiteFinding) else found
    except AtlasError as error:
        yield SiteFinding(
            check=name,
            condition=Condition.WRONG,
            found=str(error),
            remedy=str(error.remedy or "see what is said there"),
        )
    except OSError as error:
        yield SiteFinding(
            check=name,
            condition=Condition.WRONG,
            found=f"{type(error).__name__}: {error.strerror or error}",
            remedy="see whether it runs, and whether this process may reach it",
        )
