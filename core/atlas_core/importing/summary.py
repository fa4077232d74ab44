"""What an import did, and what became of each candidate."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from atlas_core.errors import printable
from atlas_core.importing.candidates import Candidate, Discovery, shown_name
from atlas_core.importing.original_labels import LabelFiles

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


class Fate(StrEnum):
    """What became of a file."""

    TAKEN = "taken"
    PRESENT = "there already"
    LEFT_OUT = "left out"
    REFUSED = "refused"


@dataclass(frozen=True)
class FileFate:
    """What became of one file, and why.

    Attributes:
        source: relative to what the user passed, printable.
        reason: empty where it was taken or was there.
    """

    source: str
    fate: Fate
    reason: str = ""


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
        files: what became of every file that was found, by name.
    """

    dataset: str
    taken: tuple[ImportedCase, ...] = ()
    present: tuple[ImportedCase, ...] = ()
    refused: tuple[Note, ...] = ()
    skipped: tuple[Note, ...] = ()
    warnings: tuple[Note, ...] = ()
    files: tuple[FileFate, ...] = ()


@dataclass(frozen=True)
class ImportProgress:
    """How far an import is: `done` of `total` candidates, the last of which was `source`."""

    done: int
    total: int
    source: str


@dataclass
class CandidateOutcome:
    """What became of one candidate.

    Attributes:
        left_out: names of masks that are not organs of the scheme.
        fates: of its label files that were not simply taken.
    """

    source: str
    taken: ImportedCase | None = None
    present: ImportedCase | None = None
    refused: list[Note] = field(default_factory=list)
    skipped: list[Note] = field(default_factory=list)
    warnings: list[Note] = field(default_factory=list)
    left_out: frozenset[str] = frozenset()
    fates: dict[Path, tuple[Fate, str]] = field(default_factory=dict)

    @property
    def organs(self) -> tuple[str, ...]:
        """Original labels that were taken."""
        imported = self.taken or self.present
        return imported.organs if imported else ()

    def account(self, files: LabelFiles, there: set[str], new: set[str]) -> None:
        """Says what became of the label files that nothing was said of.

        Args:
            there: organs that had an original label.
            new: organs that got one.
        """
        for name, file in files.masks.items():
            self.fates.setdefault(file, _fate({*files.meaning.masks.get(name, ())}, there, new))
        if files.label_map is not None:
            organs = {organ for one in files.meaning.labels.values() for organ in one}
            self.fates.setdefault(files.label_map, _fate(organs, there, new))

    def account_object(
        self, file: Path, files: LabelFiles, there: Collection[str], new: Collection[str]
    ) -> None:
        """Says what became of a DICOM object, whose segments are `files`; as `account`."""
        organs = {organ for one in files.meaning.masks.values() for organ in one}
        self.fates.setdefault(file, _fate(organs, there, new))

    def files(self, candidate: Candidate, root: Path) -> list[FileFate]:
        """What became of each of its files."""
        ct, why = self._of_ct()
        found = [FileFate(shown_name(file, root), ct, why) for file in candidate.ct_files]
        imported = ct in (Fate.TAKEN, Fate.PRESENT)
        without = (ct, f"its CT was {ct}: {why}")
        for file in candidate.label_files:
            fate, reason = self.fates.get(file, (Fate.TAKEN, "")) if imported else without
            found.append(FileFate(shown_name(file, root), fate, printable(reason)))
        return found

    def _of_ct(self) -> tuple[Fate, str]:
        if self.taken is not None:
            return Fate.TAKEN, ""
        if self.present is not None:
            return Fate.PRESENT, ""
        if self.refused:
            return Fate.REFUSED, self.refused[-1].reason
        return Fate.LEFT_OUT, self.skipped[-1].reason if self.skipped else ""


def _fate(organs: set[str], there: Collection[str], new: Collection[str]) -> tuple[Fate, str]:
    """What became of a label file of `organs`."""
    if not organs.isdisjoint(new):
        return Fate.TAKEN, ""
    if not organs.isdisjoint(there):
        return Fate.PRESENT, ""
    return Fate.LEFT_OUT, "holds no organ of this atlas, or is not called after one"


def summary_of(
    dataset: str, outcomes: list[CandidateOutcome], found: Discovery, root: Path
) -> ImportSummary:
    files: dict[str, FileFate] = {
        aside.name: FileFate(aside.name, Fate.LEFT_OUT, aside.reason)
        for aside in (*found.set_aside, *found.others)
    }
    for outcome, candidate in zip(outcomes, found.candidates, strict=True):
        for file in outcome.files(candidate, root):
            # What several cases share (dataset.json) was taken if one of them took it.
            if file.source not in files or files[file.source].fate != Fate.TAKEN:
                files[file.source] = file
    return ImportSummary(
        dataset=dataset,
        taken=tuple(o.taken for o in outcomes if o.taken is not None),
        present=tuple(o.present for o in outcomes if o.present is not None),
        refused=tuple(note for o in outcomes for note in o.refused),
        skipped=tuple(
            [note for o in outcomes for note in o.skipped]
            + [Note(aside.name, aside.reason) for aside in found.set_aside]
        ),
        warnings=tuple(note for o in outcomes for note in o.warnings),
        files=tuple(files[name] for name in sorted(files)),
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
