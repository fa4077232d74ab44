"""Training, validation and test cases of a release: the paper's proportions, by patient."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Split(StrEnum):
    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


PAPER_CASES: Final = {Split.TRAIN: 5500, Split.VALIDATION: 500, Split.TEST: 2448}
"""How the paper splits its 8,448 CTs (§4.1, dataset splits)."""


@dataclass(frozen=True)
class SplitCase:
    """A case to be assigned to a split.

    Attributes:
        case_id: which.
        dataset: its dataset; every dataset is split in the same proportions.
        patient: whose CT it is; None: unknown, and the case is treated as a patient of its own.
        shared: what it shares with other cases of its patient: the fingerprint of copies of a scan,
            checksums of UIDs of DICOM.
    """

    case_id: str
    dataset: str
    patient: str | None = None
    shared: frozenset[str] = frozenset()


def split_cases(members: Iterable[SplitCase]) -> dict[str, Split]:
    """The split of every case, by case id; the same for the same cases in any order.

    Patients are taken dataset by dataset, in the order of a checksum of their names; each, with all
    their CTs, is assigned to the split that falls shortest of `PAPER_CASES`. So no patient is in
    two splits, and the whole and every dataset (give or take a CT) have the paper's proportions.
    Copies of one scan, what was derived from it, and series of one study are of one patient,
    whatever else is known of them.
    """
    groups = _by_patient(sorted(members, key=lambda m: m.case_id))
    order = sorted(groups, key=lambda key: (groups[key][0].dataset, _shuffled(key)))
    placed = dict.fromkeys(Split, 0)
    found = {}
    for key in order:
        total = sum(placed.values()) + len(groups[key])
        split = max(Split, key=lambda s: PAPER_CASES[s] * total - placed[s] * _PAPER_TOTAL)
        placed[split] += len(groups[key])
        found.update({member.case_id: split for member in groups[key]})
    return found


def _by_patient(members: Sequence[SplitCase]) -> dict[str, list[SplitCase]]:
    """Cases of each patient; those whom something shared joins are one patient."""
    joined: dict[str, str] = {}

    def root(key: str) -> str:
        while key in joined:
            key = joined[key]
        return key

    groups: dict[str, list[SplitCase]] = {}
    sharing: dict[str, str] = {}
    for member in members:
        # A patient called like a case is not that case.
        key = f"case {member.case_id}" if member.patient is None else f"patient {member.patient}"
        groups.setdefault(key, []).append(member)
        for mark in sorted(member.shared):
            here, there = root(key), root(sharing.setdefault(mark, key))
            if here != there:
                joined[here] = there
    for key in joined:
        groups.setdefault(root(key), []).extend(groups.pop(key))
    return {key: sorted(group, key=lambda m: m.case_id) for key, group in groups.items()}


_PAPER_TOTAL: Final = sum(PAPER_CASES.values())


def _shuffled(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
