"""Scoring cases through the attention service: choosing them, calling it, recording the scores.

Nothing here knows Prefect; `atlas_flows.scoring.flow` is a thin shell around these functions.
"""

from __future__ import annotations

import hashlib
import logging
import random
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal, Protocol, TypeVar

import grpc
from atlas_core.catalog import Catalog, current_ensembles
from atlas_core.ensembles import EnsembleState
from atlas_core.errors import (
    AtlasError,
    ConfigurationError,
    Conflict,
    InvalidInput,
    NotFound,
    Unavailable,
)
from atlas_core.geometry import Float3, VolumeGeometry
from atlas_core.model_spec import ModelRef, ensemble_key, parse_ensemble
from atlas_core.organs import OrganScheme
from atlas_core.records import Label, LabelSource, OrganScore, Reading, Score
from atlas_core.store import CaseStore
from atlasloop.answers import CaseResult, ModelInfo, ServiceInfo
from atlasloop.client import AttentionServiceError
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_before_delay

from atlas_flows.runs import CaseOutcome, Outcome, ProgressCounter, RunSummary, candidates

log = logging.getLogger(__name__)

ReplyT = TypeVar("ReplyT")


CASE_TIMEOUT_S = 3600.0
"""Deadline of one case. The largest CTs take minutes on a CPU; a call that takes an hour hangs."""


INFO_TIMEOUT_S = 10.0
"""Deadline for asking which models are in service; the service answers from memory."""


class ScoreSummary(RunSummary):
    """The result of one run; cases that this ensemble had scored before are skipped."""

    reading: Reading
    ensemble: str


@dataclass(frozen=True)
class ScoreRequest:
    """Which cases are scored, and how.

    Attributes:
        reading: how soft predictions become attention.
        dataset: only its cases; None for all.
        cases: only these; empty for all of the dataset.
        ensemble: its name; None for the one in use.
        models: "unet" (the version in service) or "unet@2", in place of an ensemble.
        force: score again what was scored.
        limit: at most so many cases; None for all.
    """

    reading: Reading = Reading.PAPER
    dataset: str | None = None
    cases: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    force: bool = False
    limit: int | None = None
    ensemble: str | None = None


@dataclass(frozen=True)
class ScoringPlan:
    """Which cases are scored with which models.

    The models are pinned: one run gives one comparable list even if a new version comes into
    service while it lasts.
    """

    request: ScoreRequest
    ensemble: ScoringEnsemble
    cases: tuple[str, ...]
    skipped: int

    @property
    def pinned(self) -> tuple[str, ...]:
        return tuple(f"{ref.name}@{ref.version}" for ref in self.ensemble.models)


@dataclass(frozen=True)
class Patience:
    """How long to wait for a service that does not answer.

    Attributes:
        total_s: from the first refusal of a case to giving up.
        first_s: first pause; doubled each time.
        longest_s: longest pause.
    """

    total_s: float = 300.0
    first_s: float = 0.25
    longest_s: float = 10.0

    def pause_s(self, attempt: int) -> float:
        """Pause after failed `attempt` (0, 1, …): doubled each time, and shortened by up to a half
        at random so that callers that failed together do not return together."""
        # The exponent is bounded because 2.0**1024 overflows.
        full = min(self.longest_s, self.first_s * 2.0 ** min(attempt, 32))
        return full * random.uniform(0.5, 1.0)  # noqa: S311  (no secret)


class ScoringClient(Protocol):
    """The part of the attention client that scoring needs."""

    def info(self, *, timeout_s: float | None = None) -> ServiceInfo: ...

    def score_case(
        self,
        case_id: str,
        reading: Literal["paper", "released", "opened"] = "paper",
        *,
        models: Sequence[str] = (),
        ensemble: str = "",
        newer_than: int = 0,
        on_progress: Callable[[int, int], None] | None = None,
        timeout_s: float | None = None,
    ) -> CaseResult: ...


@dataclass(frozen=True)
class ScoringRun:
    """Everything that the shards of one run share. Safe to use from several threads."""

    plan: ScoringPlan
    client: ScoringClient
    catalog: Catalog
    store: CaseStore
    progress: ProgressCounter
    patience: Patience = field(default_factory=Patience)
    stop: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class ScoringEnsemble:
    """Models in service that score together.

    Attributes:
        models: one version of each.
        labels: organ → its value in the pseudo label.
        grids_mm: spacing of each model's grid along x, y, z.
        name: empty where models were named one by one.
        fusion_spacing_mm: of the grid of the fusion; None: the finest of the models'.
        organ_scheme, organ_scheme_sha256: organs that the service is configured for.
    """

    models: tuple[ModelRef, ...]
    labels: Mapping[str, int]
    grids_mm: tuple[Float3, ...] = ()
    name: str = ""
    fusion_spacing_mm: Float3 | None = None
    organ_scheme: str = ""
    organ_scheme_sha256: str = ""

    @property
    def key(self) -> str:
        return ensemble_key(self.models, self.fusion_spacing_mm)


def select_ensemble(
    info: ServiceInfo, wanted: Sequence[str], name: str | None = None
) -> ScoringEnsemble:
    """The ensemble `name`, each model in its version in service; None: the one in use, or the
    models that `wanted` names ("unet", "unet@2").

    Raises:
        NotFound: an ensemble or a model that is not in service.
        InvalidInput: see `parse_ensemble`; or both an ensemble and models.
    """
    if name and wanted:
        raise InvalidInput(
            "an ensemble and models exclude each other",
            got=f"{name} and {', '.join(wanted)}",
            remedy="give one of them",
        )
    every = {(m.name, m.version): m for m in (*info.models, *info.older_models)}
    named = next((e for e in info.ensembles if e.name == (name or info.ensemble_in_use)), None)
    if name and named is None:
        raise NotFound(
            f"ensemble {name} is not loaded",
            expected=", ".join(one.name for one in info.ensembles),
            remedy=f"load it: `atlasloop ensemble use {name} --beside`",
        )
    spacing = None
    if wanted:
        named = None
        chosen = _by_hand(info, wanted)
    elif named is None:  # a service of before
        chosen = list(info.models)
    else:
        chosen = [every[model.name, model.version] for model in named.models]
        spacing = named.fusion_spacing_mm
    return ScoringEnsemble(
        tuple(ModelRef(name=m.name, version=m.version, sha256=m.sha256) for m in chosen),
        dict(zip(info.organs, info.labels, strict=True)),
        tuple((m.spacing_mm[0], m.spacing_mm[1], m.spacing_mm[2]) for m in chosen),
        "" if named is None else named.name,
        spacing,
        info.organ_scheme,
        info.organ_scheme_sha256,
    )


def _by_hand(info: ServiceInfo, wanted: Sequence[str]) -> list[ModelInfo]:
    in_service = {model.name: model for model in (*info.older_models, *info.models)}
    in_service |= {
        ref.name: model
        for ensemble in info.ensembles
        for ref in ensemble.models
        for model in (*info.models, *info.older_models)
        if (model.name, model.version) == (ref.name, ref.version)
    }
    every = {(m.name, m.version): m for m in (*info.models, *info.older_models)}
    chosen = []
    for text, (name, version) in zip(wanted, parse_ensemble(wanted).items(), strict=True):
        model = in_service.get(name) if version is None else every.get((name, version))
        if model is None:
            served = ", ".join(f"{n}@{t}" for n, t in sorted(every))
            raise NotFound(f"model {text} is not in service", expected=f"one of {served}")
        chosen.append(model)
    return chosen


def await_ensemble(
    client: ScoringClient,
    request: ScoreRequest,
    on_record: Mapping[str, Collection[str]],
    patience: Patience,
) -> ScoringEnsemble:
    """The ensemble to score with, as `select_ensemble`; waits for a service that is starting.

    Args:
        on_record: the models of every ensemble that is to be loaded, by its name; that in use also
            by the empty one. All of them must be in service: a smaller ensemble would give another
            list, silently. What is registered beside them does not matter.

    Raises:
        Unavailable: the service, or a member, does not answer within `patience`.
        NotFound, InvalidInput: see `select_ensemble`.
        AttentionServiceError: the service refused.
    """

    def ask() -> ScoringEnsemble:
        found = select_ensemble(
            client.info(timeout_s=INFO_TIMEOUT_S), request.models, request.ensemble
        )
        members = on_record.get(request.ensemble or "", ())
        missing = sorted(set(members) - {model.name for model in found.models})
        if missing and not request.models:
            raise AttentionServiceError(
                grpc.StatusCode.UNAVAILABLE,
                f"members of the ensemble are not in service: {', '.join(missing)} (see "
                "`atlasloop ensemble show`, or name the models you want)",
            )
        return found

    return _patiently(ask, patience, threading.Event())


def plan_scoring(
    request: ScoreRequest, by: ScoringEnsemble, catalog: Catalog, store: CaseStore
) -> ScoringPlan:
    """Which cases of `request` are still to be scored by the ensemble `by`.

    A case counts as scored when the result in force is the newest one that the store has: files
    that were lost are made again, and a result that was not recorded is.

    Raises:
        NotFound: an unknown dataset or case.
        ConfigurationError: the service and the atlas have different organs.
    """
    atlas = catalog.organ_scheme()
    _require_same_organs(by, atlas)
    # The service lists the organs of the ensemble in use only; a named one may know others.
    by = replace(by, labels=dict(zip(atlas.names, atlas.labels, strict=True)))
    chosen = candidates(catalog, request.dataset, request.cases)
    scored: set[str] = set()
    if not request.force:
        scored = {
            case_id
            for case_id, number in catalog.scored_cases(request.reading, by.key).items()
            if store.result_number(case_id, request.reading, by.key) == number
        }
    to_do = [case_id for case_id in chosen if case_id not in scored]
    return ScoringPlan(request, by, tuple(to_do[: request.limit]), len(chosen) - len(to_do))


def _require_same_organs(by: ScoringEnsemble, atlas: OrganScheme) -> None:
    if by.organ_scheme_sha256 != atlas.digest:
        raise ConfigurationError(
            "the attention service and the atlas have different organs",
            expected=atlas,
            got=f"{by.organ_scheme or 'none said'} ({by.organ_scheme_sha256[:8]})",
            remedy="start the service anew with the atlas's (`atlasloop up`, or the setting "
            "ATLAS_ATTENTION_ORGANS)",
        )


def score_shard(run: ScoringRun, cases: Sequence[str]) -> list[CaseOutcome]:
    """Score `cases` one after the other; one that fails by its own fault does not stop the rest."""
    outcomes = []
    for case_id in cases:
        outcome = _score_one(run, case_id)
        run.progress.add(outcome)
        outcomes.append(outcome)
    return outcomes


def _score_one(run: ScoringRun, case_id: str) -> CaseOutcome:
    if run.stop.is_set():
        return CaseOutcome(
            case_id=case_id, outcome=Outcome.NOT_TRIED, message="the run ended before its turn"
        )
    started = time.monotonic()
    try:
        case = run.catalog.case(case_id)
        VolumeGeometry(case.shape, case.affine).require_bounded(
            run.plan.ensemble.grids_mm, case=case_id
        )
        result = _score_patiently(run, case_id)
        if result.ensemble != run.plan.ensemble.key:
            raise Conflict(
                "the ensemble changed while the run lasted",
                case=case_id,
                expected=run.plan.ensemble.key,
                got=result.ensemble,
                remedy="run again: what is scored stays scored",
            )
        run.catalog.record_score(
            score_of(result), pseudo_labels(result, run.plan.ensemble.labels, run.store)
        )
    except Unavailable as error:
        # Every other case would wait as long for the same service.
        run.stop.set()
        return CaseOutcome(case_id=case_id, outcome=Outcome.NOT_TRIED, message=str(error))
    except AttentionServiceError as error:
        return CaseOutcome(case_id=case_id, outcome=Outcome.FAILED, message=error.message)
    except AtlasError as error:
        return CaseOutcome(case_id=case_id, outcome=Outcome.FAILED, message=str(error))
    return CaseOutcome(
        case_id=case_id,
        outcome=Outcome.FOUND if result.already_scored else Outcome.SCORED,
        seconds=round(time.monotonic() - started, 3),
    )


def _score_patiently(run: ScoringRun, case_id: str) -> CaseResult:
    request = run.plan.request
    key = (case_id, request.reading, run.plan.ensemble.key)
    stored = run.store.result_number(*key)
    if stored == 0:
        run.catalog.delete_score(*key)  # its files are lost: nobody should believe it
    # The result in force stays so until there is a newer one, and an answer that was lost on the
    # way is found by the next call.
    newer_than = stored if request.force else 0
    return _patiently(lambda: _call_service(run, case_id, newer_than), run.patience, run.stop)


def _call_service(run: ScoringRun, case_id: str, newer_than: int) -> CaseResult:
    plan = run.plan

    def score() -> CaseResult:
        return run.client.score_case(
            case_id,
            plan.request.reading.value,
            models=plan.pinned,
            ensemble=plan.ensemble.name,
            newer_than=newer_than,
            timeout_s=CASE_TIMEOUT_S,
        )

    try:
        return score()
    except AttentionServiceError as error:
        if error.status is not grpc.StatusCode.NOT_FOUND:
            raise
        # A model server that was started again loads its models one by one: ours was there when
        # the run began, so it is not loaded yet, rather than unknown.
        if not _in_service(run):
            raise AttentionServiceError(grpc.StatusCode.UNAVAILABLE, error.message) from None
    # All are there: it is the case that is unknown, or the last model has come this very moment.
    return score()


def members_on_record(catalog: Catalog) -> dict[str, tuple[str, ...]]:
    """The voices of every ensemble by its name; of the one in use also by the empty name."""
    voices = {}
    for change in current_ensembles(catalog):
        names = tuple(model.name for model in change.ensemble.voices)
        voices[change.ensemble.name] = names
        if change.state is EnsembleState.IN_USE:
            voices[""] = names
    return voices


def _in_service(run: ScoringRun) -> bool:
    info = run.client.info(timeout_s=INFO_TIMEOUT_S)
    served = {(model.name, model.version) for model in (*info.models, *info.older_models)}
    return served >= {(ref.name, ref.version) for ref in run.plan.ensemble.models}


def score_of(result: CaseResult) -> Score:
    """The service's answer as a record of the catalog."""
    return Score(
        case_id=result.case_id,
        reading=Reading(result.reading),
        ensemble=result.ensemble,
        models=_refs(result),
        organs=tuple(
            OrganScore(
                organ=organ.organ,
                attention_voxels=organ.attention_voxels,
                attention_ml=organ.attention_ml,
                pseudo_label_ml=organ.pseudo_label_ml,
                disagreement=organ.disagreement,
                expected_ml=organ.expected_ml,
                voices=organ.voices,
                attended_ml=organ.attended_ml,
            )
            for organ in result.organs
        ),
        number=result.number,
        seconds=result.timing.total_s,
        created_at=datetime.now(UTC),
    )


def pseudo_labels(
    result: CaseResult, labels: Mapping[str, int], store: CaseStore
) -> tuple[Label, ...]:
    """One label per predicted organ, all in one file; an organ of no voxels was predicted absent.

    Args:
        labels: organ → its value in the file.

    Raises:
        NotFound: the store does not hold what the service says it wrote.
    """
    reading = Reading(result.reading)
    path = store.pseudo_label_path(result.case_id, reading, result.ensemble, result.number)
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise NotFound(
            "the attention service answered, but its prediction is not in the case store",
            case=result.case_id,
            remedy="let the service and this command work on the same case store",
        ) from None
    now = datetime.now(UTC)
    return tuple(
        Label(
            case_id=result.case_id,
            organ=organ.organ,
            source=LabelSource.PSEUDO,
            path=store.relative(path),
            value=labels[organ.organ],
            sha256=sha256,
            voxels=organ.pseudo_label_voxels,
            volume_ml=organ.pseudo_label_ml,
            models=_refs(result),
            created_at=now,
        )
        for organ in result.organs
    )


def _refs(result: CaseResult) -> tuple[ModelRef, ...]:
    return tuple(ModelRef(name=m.name, version=m.version, sha256=m.sha256) for m in result.models)


def _patiently(call: Callable[[], ReplyT], patience: Patience, stop: threading.Event) -> ReplyT:
    """`call`, again with growing pauses while the service is busy or does not answer.

    Raises:
        Unavailable: no answer when `patience` is over, or `stop` was set meanwhile.
        AttentionServiceError: refused for good.
    """

    def may_pass(error: BaseException) -> bool:
        if not isinstance(error, AttentionServiceError):
            return False
        # A service that is shutting down cancels the calls it works on.
        cancelled = error.status is grpc.StatusCode.CANCELLED and not stop.is_set()
        return error.retryable or cancelled

    def pause(seconds: float) -> None:
        if stop.wait(seconds):
            raise Unavailable("the run was stopped")

    def give_up(state: RetryCallState) -> ReplyT:
        raise Unavailable(
            f"the attention service is away for more than {patience.total_s:.0f} s: "
            f"{_error_of(state).message}",
            remedy="see `atlasloop status`, then run again: what is scored stays scored",
        )

    retrying = Retrying(
        retry=retry_if_exception(may_pass),
        wait=lambda state: patience.pause_s(state.attempt_number - 1),
        stop=stop_before_delay(patience.total_s),
        sleep=pause,
        before_sleep=lambda state: log.warning(
            "attention service: %s; trying again in %.1f s",
            _error_of(state).message,
            state.upcoming_sleep,
        ),
        retry_error_callback=give_up,
    )
    return retrying(call)


def _error_of(state: RetryCallState) -> AttentionServiceError:
    error = None if state.outcome is None else state.outcome.exception()
    assert isinstance(error, AttentionServiceError)
    return error
