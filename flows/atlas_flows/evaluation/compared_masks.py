"""The masks behind Fig. 8: what each architecture predicts by itself, and what each annotator drew.

A model's own label map comes from the attention service, one model at a time, and is cached among
the derived files of its case: the second matrix, and the report, need no service.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from atlas_core.catalog import Catalog
from atlas_core.errors import AtlasError
from atlas_core.imaging import read_label, write_volume
from atlas_core.model_spec import ModelRef, ensemble_key
from atlas_core.organs import OrganScheme
from atlas_core.records import Case, LabelSource, Reading, Score
from atlas_core.review import LabelVersion, LabelVersions
from atlas_core.store import CaseStore
from atlasloop.client import AttentionClient
from numpy.typing import NDArray

from atlas_flows.evaluation.ground_truth import GroundTruth, GroundTruthCase, NothingToCompare
from atlas_flows.evaluation.rater_agreement import DiceMatrix, PairDice, dice_matrix, pair_dice
from atlas_flows.models.version_evaluation import predicted_label

# With a space: no model and no annotator can have such a name.
ENSEMBLE = "ensemble mean"
PSEUDO = "pseudo label"
TRUTH = "true label"


@dataclass(frozen=True)
class ComparisonScope:
    """Where labels are compared.

    Attributes:
        truth: the true labels, or None: then every organ without an original label is compared.
        ensemble: its pseudo labels, and its models one by one.
    """

    catalog: Catalog
    store: CaseStore
    truth: GroundTruth | None
    reading: Reading
    ensemble: str

    @cached_property
    def scheme(self) -> OrganScheme:
        """The organs of the catalog's atlas."""
        return self.catalog.organ_scheme()


def architecture_matrix(
    where: ComparisonScope,
    client: AttentionClient | None = None,
    *,
    limit: int | None = None,
    on_case: Callable[[int, int], None] = lambda done, of: None,
) -> DiceMatrix:
    """Fig. 8a: Dice between the architectures, their mean, and the truth, over cases and organs.

    Args:
        client: predicts what is not cached yet, and caches it; None: only cases of which all is
            cached.
        limit: only the first N cases by id.
        on_case: called with the number of cases that are done, and of all.

    Raises:
        NothingToCompare: there is no case, or one architecture only.
        Unavailable: the service does not answer.
        AtlasError: a file cannot be read.
    """
    cases = _scored(where)[:limit]
    pairs: list[PairDice] = []
    names: dict[str, None] = {}
    for done, known in enumerate(cases, start=1):
        score = where.catalog.score(known.case.id, where.reading, where.ensemble)
        maps = _map_of_each_model(where, known.case, score, client) if score else None
        if score and maps:
            names |= dict.fromkeys(maps)
            maps[ENSEMBLE] = _pseudo_label(where, known.case, score)
            pairs += _pairs(known, maps, where.scheme, _organs(known, score))
        on_case(done, len(cases))
    if len(names) < 2:
        raise NothingToCompare(
            "no case has labels of two architectures, each alone",
            remedy="run `atlasloop evaluate architectures` while the stack is up",
        )
    return dice_matrix([*names, ENSEMBLE, *([TRUTH] if where.truth else [])], pairs)


def annotator_matrix(where: ComparisonScope, *, independent: bool = True) -> DiceMatrix:
    """Fig. 8b: Dice between annotators, with the pseudo label, and with the truth if there is one.

    Of every case and organ the newest label version of each author counts, also one that is kept
    beside the label in force. The pseudo label is that of the ensemble, where it has scored.

    Args:
        independent: leave out pairs where one annotator's version was made from the other's.

    Raises:
        AtlasError: a file cannot be read.
    """
    versions = LabelVersions(where.catalog)
    truth = {} if where.truth is None else {one.case.id: one for one in where.truth.cases()}
    pairs: list[PairDice] = []
    authors: set[str] = set()
    left_out = 0
    for case_id in versions.authored_cases():
        drawn = [v for v in versions.versions(case_id) if v.source is LabelSource.REVISED]
        authors |= {version.author for version in drawn if version.author}
        found = _drawn_pairs(where, where.catalog.case(case_id), drawn, truth.get(case_id))
        dependent = _dependent(drawn) if independent else set()
        kept = [pair for pair in found if (pair.organ, pair.one, pair.other) not in dependent]
        left_out += len(found) - len(kept)
        pairs += kept
    raters = [*sorted(authors), PSEUDO, *([TRUTH] if where.truth else [])] if authors else []
    return dice_matrix(raters, pairs, left_out=left_out)


def _scored(where: ComparisonScope) -> list[GroundTruthCase]:
    scored = where.catalog.scored_cases(where.reading, where.ensemble)
    if where.truth is not None:
        return [known for known in where.truth.cases() if known.case.id in scored]
    original = where.catalog.original_organs()
    return [
        GroundTruthCase(
            case=case,
            kind="",
            organs=tuple(n for n in where.scheme.names if n not in original.get(case.id, ())),
            masks=dict,
        )
        for case in where.catalog.cases()
        if case.id in scored
    ]


def _organs(known: GroundTruthCase, score: Score) -> list[str]:
    predicted = {size.organ for size in score.organs}
    return [organ for organ in known.organs if organ in predicted]


def _pairs(
    known: GroundTruthCase,
    maps: Mapping[str, NDArray[np.integer]],
    scheme: OrganScheme,
    organs: Sequence[str],
) -> Iterator[PairDice]:
    truth = known.masks()
    for organ in organs:
        masks = {name: labels == scheme[organ].label for name, labels in maps.items()}
        if organ in truth:
            masks[TRUTH] = truth[organ]
        yield from pair_dice(known.case.id, organ, masks)


def _map_of_each_model(
    where: ComparisonScope, case: Case, score: Score, client: AttentionClient | None
) -> dict[str, NDArray[np.integer]] | None:
    """Label map of every model of the ensemble; None if one is neither cached nor available."""
    maps = {}
    for ref in score.models:
        labels = _cached(where, case, ref)
        if labels is None and client is not None:
            labels = predicted_label(f"{ref.name}@{ref.version}", case, client)
            _cache(where, case, ref, labels)
        if labels is None:
            return None
        maps[ref.name] = labels
    return maps


def _cached(where: ComparisonScope, case: Case, ref: ModelRef) -> NDArray[np.integer] | None:
    """The label map of a case that this model scored, or predicted for an earlier matrix."""
    scored = where.store.pseudo_label_path(case.id, where.reading, ensemble_key([ref]))
    for path in (scored, where.store.derived_path(case.id, _cache_name(ref))):
        if path.is_file():
            volume = read_label(path)
            case.geometry.require_same_grid(volume.geometry, this="CT", that="label", case=case.id)
            return volume.voxels
    return None


def _cache(where: ComparisonScope, case: Case, ref: ModelRef, labels: NDArray[np.integer]) -> None:
    where.store.write_derived(
        case.id, _cache_name(ref), lambda path: write_volume(path, labels, case.geometry)
    )


def _cache_name(ref: ModelRef) -> str:
    return f"alone-{ref.name}-{ref.version}-{ref.sha256[:12]}.nii.gz"


def _pseudo_label(where: ComparisonScope, case: Case, score: Score) -> NDArray[np.integer]:
    path = where.store.pseudo_label_path(case.id, score.reading, score.ensemble, score.number)
    return read_label(path).voxels


def _drawn_pairs(
    where: ComparisonScope, case: Case, drawn: Sequence[LabelVersion], known: GroundTruthCase | None
) -> list[PairDice]:
    """Every pair of sources of one case, organ by organ."""
    newest: dict[str, dict[str, LabelVersion]] = {}
    for version in drawn:  # oldest first: the last one stays
        if version.author:
            newest.setdefault(version.organ, {})[version.author] = version
    score = where.catalog.score(case.id, where.reading, where.ensemble)
    pseudo = None if score is None else _pseudo_label(where, case, score)
    truth = known.masks() if known else {}
    pairs = []
    for organ, by_author in sorted(newest.items()):
        masks = {name: _mask(where, case, by_author[name]) for name in sorted(by_author)}
        if pseudo is not None and organ in where.scheme:
            masks[PSEUDO] = pseudo == where.scheme[organ].label
        if organ in truth:
            masks[TRUTH] = truth[organ]
        pairs += pair_dice(case.id, organ, masks)
    return pairs


def _mask(where: ComparisonScope, case: Case, version: LabelVersion) -> NDArray[np.bool_]:
    try:
        volume = read_label(where.store.path(version.path))
    except AtlasError as error:
        raise error.with_case(case.id) from None
    case.geometry.require_same_grid(volume.geometry, this="CT", that="label", case=case.id)
    return np.asarray(volume.voxels == version.value)


def _dependent(drawn: Sequence[LabelVersion]) -> set[tuple[str, str, str]]:
    """(organ, one author, other author), in alphabetical order, of pairs of newest versions of
    which one was made from the other, directly or through versions between them."""
    by_id = {version.id: version for version in drawn}
    newest = {(version.organ, version.author): version for version in drawn}
    found = set()
    for (organ, author), version in newest.items():
        base = by_id.get(version.base or "")
        while base is not None:
            if base.author and author and base.author != author:
                one, other = sorted((author, base.author))
                found.add((organ, one, other))
            base = by_id.get(base.base or "")
    return found
