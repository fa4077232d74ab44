"""Plan of a release: its cases, their numbers and splits, and whether licences allow it.

Everything is decided here, before a file is written; `release.files` writes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from atlas_core.assembly import Assemblies, Assembly, preferred
from atlas_core.catalog import Catalog, chunks, labels_by_case, uid_marks
from atlas_core.errors import AtlasError, InvalidInput, NotFound
from atlas_core.imaging import read_header
from atlas_core.organs import OrganScheme
from atlas_core.records import Case, Dataset, Label, LabelSource
from atlas_core.release.case_numbers import case_numbers
from atlas_core.release.licences import LicenceProblem, LicenceRisk, licence_problems
from atlas_core.release.splits import Split, SplitCase, split_cases
from atlas_core.store import CaseStore

SHOWN: Final = 5
"""Limit of the problems that a message lists; the exception holds all."""


class ReleaseFormat(StrEnum):
    ATLAS = "atlas"
    """AbdomenAtlas: one folder per case with ``combined_labels.nii.gz`` and ``segmentations/``."""
    NNUNET = "nnunet"
    """nnU-Net's raw data set: ``imagesTr``, ``labelsTr``, ``dataset.json``."""


class CtFiles(StrEnum):
    """How a release includes the CTs."""

    NONE = "none"
    """Not at all; a table names the CTs."""
    LINK = "link"
    """As symbolic links into the case store; valid on this machine only."""
    COPY = "copy"


@dataclass(frozen=True)
class ReleaseOptions:
    """Options of a release.

    Attributes:
        name: of the release, for its card.
        datasets: only these; empty: all.
        format: layout.
        cts: how CTs are included.
        accepted: licence risks that are accepted.
        leave_out: leave out incomplete cases instead of refusing the release.
        patients: case id → patient, where known; used for the splits and not released.
    """

    name: str = "Atlas"
    datasets: tuple[str, ...] = ()
    format: ReleaseFormat = ReleaseFormat.ATLAS
    cts: CtFiles = CtFiles.NONE
    accepted: frozenset[LicenceRisk] = frozenset()
    leave_out: bool = False
    patients: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ReleasedCase:
    """One case of a release.

    Attributes:
        number: its name in this release and in every other, ``BDMAP_00000001``.
        case, assembly: its records.
        split: its split.
    """

    number: str
    case: Case
    assembly: Assembly
    split: Split


@dataclass(frozen=True)
class Incomplete:
    """A case that cannot be released.

    Attributes:
        case_id: which.
        why: what is missing, and the remedy.
    """

    case_id: str
    why: str


@dataclass(frozen=True)
class ReleasePlan:
    """The content of a release.

    Attributes:
        options: what was asked for.
        scheme: of the atlas; every case has all its organs.
        cases: in the order of their numbers.
        datasets: of these cases, by name.
        licence_problems: the accepted ones.
        left_out: incomplete cases.
    """

    options: ReleaseOptions
    scheme: OrganScheme
    cases: tuple[ReleasedCase, ...]
    datasets: tuple[Dataset, ...]
    licence_problems: tuple[LicenceProblem, ...]
    left_out: tuple[Incomplete, ...]


class NotComplete(AtlasError):
    """Some cases are incomplete; `cases` holds all of them."""

    def __init__(self, cases: Sequence[Incomplete], total: int) -> None:
        self.cases = tuple(cases)
        shown = "; ".join(f"{case.case_id}: {case.why}" for case in cases[:SHOWN])
        more = f"; and {len(cases) - SHOWN} more" if len(cases) > SHOWN else ""
        super().__init__(
            f"{len(cases)} of {total} cases are not complete: {shown}{more}",
            remedy="mend them, or leave them out with --leave-out",
        )


def plan_release(catalog: Catalog, store: CaseStore, options: ReleaseOptions) -> ReleasePlan:
    """Plan a release, and check that it is allowed.

    A case that was never released gets the next number, in the order of import; see `case_numbers`.

    Raises:
        NotFound: an unknown dataset; no case at all.
        NotComplete: a case without an assembled map of every organ on the grid of its CT.
        InvalidInput: a licence risk that was not accepted; a patient of an unknown case.
    """
    for name in options.datasets:
        catalog.dataset(name)
    cases = [case for name in options.datasets or (None,) for case in catalog.cases(name)]
    cases = sorted({case.id: case for case in cases}.values(), key=lambda c: (c.imported_at, c.id))
    if not cases:
        raise NotFound("there is no case to release", remedy="bring some in: `atlasloop import`")
    _require_known_patients(options, cases)
    by_name = {dataset.name: dataset for dataset in catalog.datasets()}
    datasets = tuple(by_name[name] for name in sorted({case.dataset for case in cases}))
    problems = licence_problems(datasets)
    _require_accepted(problems, options.accepted)
    scheme = catalog.organ_scheme()
    good, incomplete = _checked(catalog, store, cases, scheme)
    if incomplete and (not options.leave_out or not good):
        raise NotComplete(incomplete, len(cases))
    marks = uid_marks(catalog, [case.id for case, _ in good])
    splits = split_cases(
        SplitCase(
            case.id,
            case.dataset,
            options.patients.get(case.id),
            marks.get(case.id, frozenset()).union([case.fingerprint] if case.fingerprint else ()),
        )
        for case, _ in good
    )
    numbers = case_numbers(catalog, [case for case, _ in good])
    released = [
        ReleasedCase(f"BDMAP_{numbers[case.id]:08d}", case, assembly, splits[case.id])
        for case, assembly in good
    ]
    in_order = tuple(sorted(released, key=lambda one: one.number))
    return ReleasePlan(options, scheme, in_order, datasets, problems, tuple(incomplete))


def _require_known_patients(options: ReleaseOptions, cases: Iterable[Case]) -> None:
    unknown = set(options.patients) - {case.id for case in cases}
    if unknown:
        # They are not repeated: with its columns swapped, the table has patients' names there.
        raise InvalidInput(
            "the table of patients names cases that are not released",
            expected="ids of the catalog in column case",
            got=f"{len(unknown)} others of {len(options.patients)}",
        )


def _require_accepted(problems: Iterable[LicenceProblem], accepted: frozenset[LicenceRisk]) -> None:
    refused = [problem for problem in problems if problem.risk not in accepted]
    if refused:
        told = "; ".join(f"{p.risk.value}: {', '.join(p.datasets)} ({p.why})" for p in refused)
        flags = " ".join(f"--accept {problem.risk.value}" for problem in refused)
        raise InvalidInput(
            f"the licences of these datasets stand against one release: {told}",
            remedy=f"release fewer datasets (--dataset), or, if you may, pass {flags}",
        )


def _checked(
    catalog: Catalog, store: CaseStore, cases: Sequence[Case], scheme: OrganScheme
) -> tuple[list[tuple[Case, Assembly]], list[Incomplete]]:
    """The cases that can be released, and those that cannot."""
    good, incomplete = [], []
    for chunk in chunks(cases):
        ids = [case.id for case in chunk]
        assemblies = Assemblies(catalog).of_cases(ids)
        labels = labels_by_case(catalog, ids)
        for case in chunk:
            assembly = assemblies.get(case.id)
            why = _problem(store, case, assembly, labels[case.id], scheme)
            if why is None and assembly is not None:
                good.append((case, assembly))
            else:
                incomplete.append(Incomplete(case.id, why or "not assembled"))
    return good, incomplete


def _problem(
    store: CaseStore,
    case: Case,
    assembly: Assembly | None,
    labels: Sequence[Label],
    scheme: OrganScheme,
) -> str | None:
    """Why a case cannot be released; None if it can."""
    if assembly is None:
        return "not assembled; run `atlasloop assemble`"
    missing = [name for name in scheme.names if name not in assembly.by_organ]
    if missing:
        return f"no label of {', '.join(missing)}; score it with models that know them"
    newer = [
        organ
        for organ, label in _drawn(labels).items()
        if organ in scheme and assembly.by_organ[organ].label_path != label.path
    ]
    if newer:
        return f"{', '.join(newer)} changed since it was assembled; run `atlasloop assemble`"
    try:
        for what, path in (("CT", store.ct_path(case.id)), ("map", store.path(assembly.path))):
            found = read_header(path).geometry
            case.geometry.require_same_grid(found, this="case", that=what, case=case.id)
    except AtlasError as error:
        return f"{path.name}: {error.what}"
    return None


def _drawn(labels: Sequence[Label]) -> dict[str, Label]:
    """The label in force of every organ that people drew."""
    drawn = [label for label in labels if label.source is not LabelSource.PSEUDO]
    return {
        organ: preferred(label for label in drawn if label.organ == organ)
        for organ in sorted({label.organ for label in drawn})
    }
