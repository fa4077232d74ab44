"""What a check finds, and what a failure of it means."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum

from atlas_core.errors import AtlasError
from atlas_core.frozen_model import FrozenModel
from pydantic import Field


class Diagnosis(StrEnum):
    GOOD = "good"
    DOUBTFUL = "doubtful"
    """It works, and will not for ever, or could not be examined."""
    WRONG = "wrong"


class Finding(FrozenModel):
    """What one check found."""

    check: str = Field(description="What was examined.")
    verdict: Diagnosis
    found: str = Field(description="In words; no patient data.")
    remedy: str = Field(default="", description="What to do; empty where all is well.")
    figures: dict[str, float] = Field(default_factory=dict, description="What was measured.")


Check = Callable[[], Finding | Iterable[Finding]]


def examine(name: str, check: Check) -> Iterator[Finding]:
    """The findings of a check; one that fails is a finding, too."""
    try:
        found = check()
        yield from [found] if isinstance(found, Finding) else found
    except AtlasError as error:
        yield Finding(
            check=name,
            verdict=Diagnosis.WRONG,
            found=str(error),
            remedy=str(error.remedy or "see what is said there"),
        )
    except OSError as error:
        yield Finding(
            check=name,
            verdict=Diagnosis.WRONG,
            found=f"{type(error).__name__}: {error.strerror or error}",
            remedy="see whether it runs, and whether this process may reach it",
        )
