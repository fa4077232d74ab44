"""The paper's evaluation of a store: Tables 1 and 5, Fig. 4, 8a and 8b, §3.3 and §5 in one value.

Parts that need a ground truth are left out without one, as `PaperEvaluation.left_out` says. The
pure parts are `attention_regions`, `label_quality`, `error_found`, `rater_agreement`, `efficiency`
and `false_positives`; `docs/explanation/evaluation.md` has the definitions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from atlas_core.catalog import Catalog
from atlas_core.errors import NotFound
from atlas_core.frozen_model import FrozenModel
from atlas_core.records import RankBy, RankedCase, Reading
from atlas_core.review import ReviewStatistics, RevisionQueue, TaskState
from atlas_core.store import CaseStore
from atlasloop.client import AttentionClient
from pydantic import Field

from atlas_flows.evaluation.attention_regions import Detection, DetectionTable, RegionRule, tabulate
from atlas_flows.evaluation.case_measures import CaseMeasures, MeasurementOptions, measure_cases
from atlas_flows.evaluation.compared_masks import (
    ComparisonScope,
    annotator_matrix,
    architecture_matrix,
)
from atlas_flows.evaluation.efficiency import (
    MINUTES_PER_ORGAN,
    Efficiency,
    efficiency,
    recorded_work,
)
from atlas_flows.evaluation.error_found import ErrorFound, measure_error_found
from atlas_flows.evaluation.false_positives import FalsePositives, false_positive_rates
from atlas_flows.evaluation.ground_truth import GroundTruth, NothingToCompare, require_cases
from atlas_flows.evaluation.label_quality import (
    IterationTable,
    LabelKind,
    MeasuredIteration,
    iteration_table,
)
from atlas_flows.evaluation.rater_agreement import DiceMatrix
from atlas_flows.evaluation.thick_errors import BorderComparison, beside_border
from atlas_flows.scoring.priority_list import TOP_SHARE, cases_in


class SizedCase(FrozenModel):
    """One point of Fig. 4."""

    case_id: str
    dataset: str
    attention_ml: float


class IterationSummary(FrozenModel):
    """One turn of the loop in a line: what its list and its labels were worth."""

    t: int = Field(ge=0, description="0: before any revision.")
    title: str = Field(description="Versions of its models.")
    ensemble: str
    cases: int
    mean_dice: float | None = Field(description="Of the pseudo labels; over organs.")
    mean_dice_assembled: float | None = Field(
        description="Of the assembled maps; None where no case was assembled in the iteration."
    )
    sensitivity: float | None = Field(description="Of attention for error regions, pooled.")
    precision: float | None
    error_in_top: float = Field(description="Part of the wrong volume in the top 5 % of its list.")
    error_in_top_by_chance: float
    false_positive_rate: float | None


class PaperEvaluation(FrozenModel):
    """Everything that could be evaluated; None for what could not, `left_out` says why."""

    made_at: datetime
    reading: Reading
    ensemble: str
    models: tuple[str, ...]
    truth: str | None = Field(description="Where the truth comes from.")
    cases: int = Field(description="Cases with a truth that the ensemble has scored.")
    sizes: tuple[SizedCase, ...] = Field(description="Cases by attention size (Fig. 4).")
    detection: tuple[DetectionTable, ...] = Field(default=(), description="Table 1 per reading.")
    error_found: ErrorFound | None = None
    iterations: tuple[IterationTable, ...] = Field(
        default=(), description="Table 5: of the pseudo labels, of the assembled labels."
    )
    by_iteration: tuple[IterationSummary, ...] = ()
    architectures: DiceMatrix | None = Field(default=None, description="Fig. 8a.")
    annotators: DiceMatrix | None = Field(default=None, description="Fig. 8b.")
    false_positives: FalsePositives | None = None
    efficiency: Efficiency
    left_out: dict[str, str] = Field(default_factory=dict, description="Part → why.")


@dataclass(frozen=True)
class EvaluationScope:
    """What is evaluated.

    Attributes:
        reading: whose attention sizes order the list, and whose ensembles are the iterations.
        ensembles: keys of the iterations, oldest first; empty: all that have scored.
        rule: what counts as a region.
        nsd: surface Dice too; it needs torch and takes most of the time.
        minutes_per_organ: of annotating by hand (§3.3).
    """

    reading: Reading = Reading.PAPER
    ensembles: tuple[str, ...] = ()
    rule: RegionRule = field(default_factory=RegionRule)
    nsd: bool = True
    minutes_per_organ: float = MINUTES_PER_ORGAN


def evaluate_all(
    catalog: Catalog,
    store: CaseStore,
    truth: GroundTruth | None,
    scope: EvaluationScope | None = None,
    *,
    client: AttentionClient | None = None,
    on_case: Callable[[int], None] = lambda done: None,
) -> PaperEvaluation:
    """Everything the paper evaluates, on the cases of the store whose truth is known.

    Call it in a flow after an iteration, or through `atlasloop report --evaluation`. It reads, and
    writes nothing; memory is bounded by one case.

    Args:
        truth: `open_ground_truth(folder, catalog, store)`; None: only what needs none.
        client: the attention service, which predicts with one architecture at a time (Fig. 8a);
            None: only what was predicted before.
        on_case: called with the number of cases that are done.

    Raises:
        NotFound: nothing is scored under this reading.
        AtlasError: a file of a case cannot be read.
    """
    scope = scope or EvaluationScope()
    turns = iterations_of(catalog, scope)
    ranked = catalog.ranking(scope.reading, turns[-1].ensemble, by=RankBy.SIZE)
    left_out: dict[str, str] = {}
    parts: dict[str, object] = {}
    if truth is None:
        left_out |= dict.fromkeys(NEED_TRUTH, "no truth was given (--truth)")
    else:
        try:
            parts = _with_truth(catalog, store, truth, scope, turns, on_case)
        except NothingToCompare as error:
            left_out |= dict.fromkeys(NEED_TRUTH, str(error))
    where = ComparisonScope(catalog, store, truth, scope.reading, turns[-1].ensemble)
    annotators = annotator_matrix(where)
    if not annotators.raters:
        left_out["annotators"] = "no annotator has handed in a label"
    architectures = None
    try:
        architectures = architecture_matrix(where, client)
    except NothingToCompare as error:
        left_out["architectures"] = str(error)
    return PaperEvaluation(
        made_at=datetime.now(UTC),
        reading=scope.reading,
        ensemble=turns[-1].ensemble,
        models=_models(catalog, scope.reading, turns[-1].ensemble, ranked),
        truth=truth.title if truth is not None and parts else None,
        sizes=tuple(
            SizedCase(case_id=row.case_id, dataset=row.dataset, attention_ml=row.attention_ml)
            for row in ranked
        ),
        architectures=architectures,
        annotators=annotators if annotators.raters else None,
        efficiency=efficiency_of(catalog, scope),
        left_out=left_out,
        **({"cases": 0} | parts),
    )


NEED_TRUTH = ("detection", "error_found", "iterations", "false_positives")
"""Parts of `PaperEvaluation` that compare with a truth."""


@dataclass(frozen=True)
class ScoredIteration:
    """One iteration as the catalog knows it: an ensemble, and until when its labels counted."""

    t: int
    ensemble: str
    until: datetime | None


def iterations_of(catalog: Catalog, scope: EvaluationScope) -> list[ScoredIteration]:
    """The ensembles that have scored, oldest first: each is one iteration of the loop.

    Unless `scope` names them, only those of the same models as the newest count: one that was
    scored with a single model is no iteration.

    Raises:
        NotFound: none has, or one that was asked for has not.
    """
    known = catalog.ensembles(scope.reading)
    keys = list(scope.ensembles) or _of_the_same_models(list(known))
    missing = [key for key in keys if key not in known]
    if missing or not keys:
        raise NotFound(
            f"no case was scored with the reading {scope.reading.value}",
            got=missing[0] if missing else None,
            remedy="run `atlasloop score` first",
        )
    ends: list[datetime | None] = [known[key] for key in keys[1:]]
    return [
        ScoredIteration(t, key, end)
        for t, (key, end) in enumerate(zip(keys, [*ends, None], strict=True))
    ]


def _of_the_same_models(keys: list[str]) -> list[str]:
    """Keys (``nnunet@0-1a2b3c4d+unet@0-…``) whose models have the names of those of the last."""

    def names(key: str) -> list[str]:
        return sorted(part.partition("@")[0] for part in key.split("+"))

    return [key for key in keys if names(key) == names(keys[-1])]


def measure_iteration(
    catalog: Catalog,
    store: CaseStore,
    truth: GroundTruth,
    scope: EvaluationScope,
    turn: ScoredIteration,
    *,
    attention: bool = True,
    compared: bool = False,
) -> Iterator[CaseMeasures]:
    """Every case of one iteration against the truth, one after another.

    Raises:
        NothingToCompare: no case that this ensemble has scored has a truth.
    """
    known = require_cases(truth, catalog.scored_cases(scope.reading, turn.ensemble))
    what = MeasurementOptions(
        rule=scope.rule,
        attention=attention,
        beside_border=compared,
        nsd=scope.nsd,
        until=turn.until,
    )
    return measure_cases(known, catalog, store, scope.reading, turn.ensemble, what)


def _with_truth(
    catalog: Catalog,
    store: CaseStore,
    truth: GroundTruth,
    scope: EvaluationScope,
    turns: Sequence[ScoredIteration],
    on_case: Callable[[int], None],
) -> dict[str, object]:
    measured: list[list[CaseMeasures]] = []
    for turn in turns:
        measured.append([])
        for case in measure_iteration(catalog, store, truth, scope, turn):
            measured[-1].append(case)
            on_case(sum(len(cases) for cases in measured))
    titles = _titles(catalog, scope, turns)
    tables = _tables(turns, titles, measured)
    newest = measured[-1]
    return {
        "cases": len(newest),
        "detection": tuple(_detection(catalog, store, truth, scope, newest)),
        "error_found": measure_error_found([case.error() for case in newest]),
        "iterations": tables,
        "by_iteration": tuple(
            _summary(turn, title, cases, tables, scope)
            for turn, title, cases in zip(turns, titles, measured, strict=True)
        ),
        "false_positives": false_positive_rates(
            found for case in newest for found in case.false_positives()
        ),
    }


def _detection(
    catalog: Catalog,
    store: CaseStore,
    truth: GroundTruth,
    scope: EvaluationScope,
    newest: Sequence[CaseMeasures],
) -> Iterator[DetectionTable]:
    """Table 1 of the reading that was measured, and of the other one where it was scored."""
    yield tabulate(scope.reading, scope.rule, (d for case in newest for d in case.detections()))
    for other in Reading:
        if other is scope.reading or catalog.latest_ensemble(other) is None:
            continue
        with contextlib.suppress(NothingToCompare):
            yield detection_table(catalog, store, truth, replace(scope, reading=other))


def detection_table(
    catalog: Catalog, store: CaseStore, truth: GroundTruth, scope: EvaluationScope
) -> DetectionTable:
    """Table 1 of the newest ensemble (or the last of `scope.ensembles`), and what is beside it.

    Raises:
        NotFound: nothing is scored, or no scored case has a truth.
    """
    turn = iterations_of(catalog, scope)[-1]
    scope = replace(scope, nsd=False)
    detections: list[tuple[str, Detection]] = []
    comparisons: list[BorderComparison] = []
    for case in measure_iteration(catalog, store, truth, scope, turn, compared=True):
        detections += case.detections()
        comparisons += case.comparisons()
    table = tabulate(scope.reading, scope.rule, detections)
    return table.model_copy(update={"beside_border": beside_border(comparisons)})


def iteration_tables(
    catalog: Catalog, store: CaseStore, truth: GroundTruth, scope: EvaluationScope
) -> tuple[IterationTable, ...]:
    """Table 5 twice: of the pseudo labels, and of the assembled maps.

    Raises:
        NotFound: nothing is scored, or no scored case has a truth.
    """
    turns = iterations_of(catalog, scope)
    measured = [
        list(measure_iteration(catalog, store, truth, scope, turn, attention=False))
        for turn in turns
    ]
    return _tables(turns, _titles(catalog, scope, turns), measured)


def efficiency_of(catalog: Catalog, scope: EvaluationScope) -> Efficiency:
    """§3.3 for this catalog; before any revision, for the top 5 % of its cases."""
    cases = catalog.cases()
    organs = catalog.organ_scheme().names
    labelled = catalog.original_organs()
    given = sum(len(labelled.get(case.id, frozenset()) & set(organs)) for case in cases)
    seen = RevisionQueue(catalog).case_ids(TaskState.REVISED, TaskState.CONFIRMED)
    recorded = recorded_work(ReviewStatistics(catalog).throughput())
    return efficiency(
        len(cases),
        organs,
        missing_labels=len(cases) * len(organs) - given,
        revised_cases=len(set(seen)) or cases_in(TOP_SHARE, len(cases)),
        recorded=recorded,
        minutes_per_organ=scope.minutes_per_organ,
    )


def _summary(
    turn: ScoredIteration,
    title: str,
    cases: Sequence[CaseMeasures],
    tables: Sequence[IterationTable],
    scope: EvaluationScope,
) -> IterationSummary:
    regions = tabulate(scope.reading, scope.rule, (d for case in cases for d in case.detections()))
    top = measure_error_found([case.error() for case in cases], [TOP_SHARE]).top()
    wrong = false_positive_rates(found for case in cases for found in case.false_positives())
    dice = {table.kind: table.mean_dice[turn.t] for table in tables}
    return IterationSummary(
        t=turn.t,
        title=title,
        ensemble=turn.ensemble,
        cases=len(cases),
        mean_dice=dice[LabelKind.PSEUDO],
        mean_dice_assembled=dice[LabelKind.ASSEMBLED],
        sensitivity=regions.overall.sensitivity,
        precision=regions.overall.precision,
        error_in_top=top.found,
        error_in_top_by_chance=top.by_chance,
        false_positive_rate=wrong.overall.rate,
    )


def _models(
    catalog: Catalog, reading: Reading, ensemble: str, ranked: Sequence[RankedCase]
) -> tuple[str, ...]:
    score = catalog.score(ranked[0].case_id, reading, ensemble) if ranked else None
    return tuple(f"{ref.name} M{ref.version}" for ref in score.models) if score else ()


def _titles(
    catalog: Catalog, scope: EvaluationScope, turns: Sequence[ScoredIteration]
) -> list[str]:
    """``M1`` where all models of an ensemble have one version, else each with its own; a title that
    comes twice gets the turn's number."""
    titles = [_title(catalog, scope.reading, turn) for turn in turns]
    return [
        title if titles.count(title) == 1 else f"{turn.t}: {title}"
        for turn, title in zip(turns, titles, strict=True)
    ]


def _title(catalog: Catalog, reading: Reading, turn: ScoredIteration) -> str:
    case_id = min(catalog.scored_cases(reading, turn.ensemble))
    score = catalog.score(case_id, reading, turn.ensemble)
    models = score.models if score else ()
    versions = {ref.version for ref in models}
    if len(versions) == 1:
        return f"M{versions.pop()}"
    return " + ".join(f"{ref.name} M{ref.version}" for ref in models)


def _tables(
    turns: Sequence[ScoredIteration],
    titles: Sequence[str],
    measured: Sequence[Sequence[CaseMeasures]],
) -> tuple[IterationTable, ...]:
    def of(kind: LabelKind) -> IterationTable:
        return iteration_table(
            kind,
            [
                _measured(kind, turn, title, cases)
                for turn, title, cases in zip(turns, titles, measured, strict=True)
            ],
        )

    return tuple(of(kind) for kind in LabelKind)


def _measured(
    kind: LabelKind, turn: ScoredIteration, title: str, cases: Sequence[CaseMeasures]
) -> MeasuredIteration:
    usable = [case for case in cases if kind is LabelKind.PSEUDO or case.assembled]
    return MeasuredIteration(
        t=turn.t,
        title=title,
        cases=tuple(case.agreement(kind) for case in usable),
        not_assembled=len(cases) - len(usable),
    )
