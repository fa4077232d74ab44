"""What an import did, and what became of each candidate."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from atlas_core.errors import printable
from atlas_core.importing.layouts import SetAside

NAMES_SHOWN: Final = 8
"""Limit of the names that a warning lists."""


@dataclass(frozen=True)
class ImportedCase:
    """A CT that is in the catalog now.

    Attributes:
        source: imported file or folder, relative to what the user passed.
        case_id: its case.
        organs: organs whose original labels this import added.
    """

    source: str
    case_id: str
    organs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Note:
    """A file that was refused or skipped, or deserves a look.

    Attributes:
        source: file or folder, relative to what the user passed.
        reason: why, with the remedy.
    """

    source: str
    reason: str

    def __post_init__(self) -> None:
        """Both are one line that a terminal shows as it is, whatever they quote."""
        object.__setattr__(self, "source", printable(self.source))
        object.__setattr__(self, "reason", printable(self.reason))


@dataclass(frozen=True)
class ImportSummary:
    """What an import did.

    Attributes:
        dataset: that the cases were imported into.
        taken: new cases.
        present: cases that were in the catalog before.
        refused: CTs and label files that could not be imported. The CT of a refused label is.
        skipped: files that are not CTs, such as label maps without a CT.
        warnings: files that were imported but deserve a look.
    """

    dataset: str
    taken: tuple[ImportedCase, ...] = ()
    present: tuple[ImportedCase, ...] = ()
    refused: tuple[Note, ...] = ()
    skipped: tuple[Note, ...] = ()
    warnings: tuple[Note, ...] = ()


@dataclass(frozen=True)
class ImportProgress:
    """How far an import is: `done` of `total` candidates, the last of which was `source`."""

    done: int
    total: int
    source: str


@dataclass
class CandidateOutcome:
    """CandidateOutcome of one candidate."""

    source: str
    taken: ImportedCase | None = None
    present: ImportedCase | None = None
    refused: list[Note] = field(default_factory=list)
    skipped: list[Note] = field(default_factory=list)
    warnings: list[Note] = field(default_factory=list)
    left_out: frozenset[str] = frozenset()  # names of masks that are not organs of the scheme

    @property
    def organs(self) -> tuple[str, ...]:
        """Original labels that were taken."""
        imported = self.taken or self.present
        return imported.organs if imported else ()


def summary_of(
    dataset: str, outcomes: list[CandidateOutcome], set_aside: tuple[SetAside, ...]
) -> ImportSummary:
    return ImportSummary(
        dataset=dataset,
        taken=tuple(o.taken for o in outcomes if o.taken is not None),
        present=tuple(o.present for o in outcomes if o.present is not None),
        refused=tuple(note for o in outcomes for note in o.refused),
        skipped=tuple(
            [note for o in outcomes for note in o.skipped]
            + [Note(aside.name, aside.reason) for aside in set_aside]
        ),
        warnings=tuple(note for o in outcomes for note in o.warnings),
    )


def left_out_notes(path: Path, outcomes: list[CandidateOutcome]) -> list[Note]:
    """One warning for all cases about masks with undeclared names."""
    names = sorted({name for outcome in outcomes for name in outcome.left_out})
    if not names:
        return []
    cases = sum(bool(outcome.left_out) for outcome in outcomes)
    shown = ", ".join(names[:NAMES_SHOWN]) + (" …" if len(names) > NAMES_SHOWN else "")
    why = f"masks of {cases} cases are not called after an organ and were left out: {shown}"
    return [Note(path.name, f"{why}; a preset may know them")]
