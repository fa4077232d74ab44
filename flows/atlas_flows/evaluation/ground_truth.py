"""Where the ground truth comes from: a folder of true masks, or the store's own original labels.

With a folder the organs *without* an original label are compared: those that the loop labels. The
original labels judge the organs *with* one, which the loop does not change; they are a fair truth
only if the models have not learnt from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from atlas_core.assembly import preferred
from atlas_core.catalog import Catalog
from atlas_core.errors import AtlasError, NotFound
from atlas_core.imaging import read_label
from atlas_core.organs import OrganScheme
from atlas_core.records import Case, Label, LabelSource
from atlas_core.store import CaseStore
from numpy.typing import NDArray

from atlas_flows.evaluation.phantom_truth import TruthFiles, matched_cases, truth_masks
from atlas_flows.evaluation.ranking_quality import ORDINARY

Masks = Mapping[str, NDArray[np.bool_]]


class NothingToCompare(NotFound):
    """No case has what a table needs; a report leaves that table out."""


@dataclass(frozen=True)
class GroundTruthCase:
    """A case with its ground truth.

    Attributes:
        kind: "ordinary", or how a phantom is hard.
        organs: those to compare, in the scheme's order.
        masks: reads the true masks of `organs` ``[i, j, k]`` on the CT's grid; an organ that is
            absent has an empty mask or none.
    """

    case: Case
    kind: str
    organs: tuple[str, ...]
    masks: Callable[[], Masks]


class GroundTruth(Protocol):
    """A source of true labels for some cases."""

    @property
    def title(self) -> str:
        """Where the truth comes from, for people."""
        ...

    def cases(self) -> list[GroundTruthCase]:
        """The cases of the catalog whose truth is known, by id."""
        ...


@dataclass(frozen=True)
class FolderTruth:
    """True masks in the folder that `atlasloop phantoms` wrote, or in one of that layout."""

    folder: Path
    catalog: Catalog

    @cached_property
    def scheme(self) -> OrganScheme:
        """The organs of the catalog's atlas."""
        return self.catalog.organ_scheme()

    @property
    def title(self) -> str:
        return "true masks of a folder; organs with an original label are left out"

    def cases(self) -> list[GroundTruthCase]:
        """See `GroundTruth.cases`.

        Raises:
            NotFound: the folder holds no truth.
        """
        original = self.catalog.original_organs()
        every = {case.id for case in self.catalog.cases()}
        matched = {
            case.id: self._known(true_case, case, original.get(case.id, frozenset()))
            for true_case, case in matched_cases(self.folder, self.catalog, every)
        }
        return [matched[case_id] for case_id in sorted(matched)]

    def _known(
        self, true_case: TruthFiles, case: Case, original: frozenset[str]
    ) -> GroundTruthCase:
        organs = tuple(name for name in self.scheme.names if name not in original)

        def masks() -> Masks:
            try:
                return truth_masks(true_case, case, self.scheme.select(organs)) if organs else {}
            except AtlasError as error:
                raise error.with_case(case.id) from None

        return GroundTruthCase(case, true_case.kind, organs, masks)


@dataclass(frozen=True)
class OriginalTruth:
    """The original labels that came with the cases, as the paper takes those of JHH."""

    catalog: Catalog
    store: CaseStore

    @cached_property
    def scheme(self) -> OrganScheme:
        """The organs of the catalog's atlas."""
        return self.catalog.organ_scheme()

    @property
    def title(self) -> str:
        return "original labels of the store"

    def cases(self) -> list[GroundTruthCase]:
        """See `GroundTruth.cases`."""
        original = self.catalog.original_organs()
        return [self._known(case) for case in self.catalog.cases() if case.id in original]

    def _known(self, case: Case) -> GroundTruthCase:
        labels = self.catalog.labels(case.id, LabelSource.ORIGINAL)
        by_organ = {
            name: preferred(found)
            for name in self.scheme.names
            if (found := [label for label in labels if label.organ == name])
        }
        return GroundTruthCase(
            case, ORDINARY, tuple(by_organ), lambda: label_masks(case, self.store, by_organ)
        )


def label_masks(case: Case, store: CaseStore, labels: Mapping[str, Label]) -> Masks:
    """Read the mask of each label of a case.

    Raises:
        AtlasError: a file is missing, cannot be read, or lies on another grid than the CT.
    """
    masks = {}
    try:
        for organ, label in labels.items():
            volume = read_label(store.path(label.path))
            case.geometry.require_same_grid(volume.geometry, this="CT", that="label", case=case.id)
            masks[organ] = volume.voxels == label.value
    except AtlasError as error:
        raise error.with_case(case.id) from None
    return masks


def open_ground_truth(folder: Path | None, catalog: Catalog, store: CaseStore) -> GroundTruth:
    """The ground truth in a folder, or, without one, the store's original labels."""
    return OriginalTruth(catalog, store) if folder is None else FolderTruth(folder, catalog)


def require_cases(
    truth: GroundTruth, among: Mapping[str, object] | set[str]
) -> Sequence[GroundTruthCase]:
    """The known cases that are also in `among`.

    Raises:
        NothingToCompare: there is none.
    """
    known = truth.cases()
    found = [one for one in known if one.case.id in among]
    if not found:
        raise NothingToCompare(
            "no scored case has a known truth",
            expected=f"one of {len(among)} scored cases among the {len(known)} with a truth",
            remedy="import and score cases of the truth folder (--truth), or cases with original "
            "labels",
        )
    return found
