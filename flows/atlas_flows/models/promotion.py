"""Which version of a model serves: trial beside the one in service, promotion, rollback.

The version in service answers during all of it. A new one is loaded beside it under its own number
and gets only trial requests; the switch is one parameter in ``config.pbtxt`` that the
attention service reads at the start of every call. A call that has begun goes on with the version
it began with, which stays loaded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from atlas_core.catalog import (
    Evaluation,
    Promotion,
    PromotionKind,
    now,
    promotions,
    record_evaluation,
    record_promotion,
    record_versions,
)
from atlas_core.ensembles import ROLLED_BACK
from atlas_core.errors import AtlasError, Conflict, InvalidInput, NotFound
from atlas_core.model_spec import ModelRef, ModelSpec
from atlas_embedded.model_trials import exclusive_change
from atlas_embedded.triton_models import TritonModels
from atlas_models.evaluation import summarise
from atlas_models.serving import TritonRepository, read_spec
from atlasloop.client import AttentionClient

from atlas_flows.models import ensembles
from atlas_flows.models.site import Site, user
from atlas_flows.models.version_evaluation import evaluate, evaluation_cases


class PromotionRefused(InvalidInput):
    """The version works, but is worse than the one in service, too bad, or judged by too few cases.

    Attributes:
        evidence: the figures that decided.
    """

    evidence: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True)
class PromotionRequest:
    """How a version is promoted.

    Attributes:
        force: promote also a version that is worse, or that no case can judge.
        dataset: evaluate on its cases only.
        limit: evaluate on the first N cases.
    """

    force: bool = False
    why: str = ""
    dataset: str | None = None
    limit: int | None = None


def promote(
    exported: Path,
    site: Site,
    request: PromotionRequest,
    on_event: Callable[[str], None] = lambda line: None,
) -> Promotion:
    """Try the exported model beside the one in service, and put it into service if it is no worse.

    If anything goes wrong, the version in service stays, and the new one is unloaded.

    Raises:
        Conflict: it is in service already, or another promotion is under way.
        ConfigurationError, Unavailable: the server refuses it, or it does not answer rightly.
        InvalidInput, LimitExceeded: it can be no member; see `compatibility.require_compatible`.
        PromotionRefused: mean Dice falls by more than the margin, that of a first version is below
            the floor, or there are too few cases to say; and `request.force` is not set.
        NotFound: there is no case to judge by, and `request.force` is not set.
    """
    spec = read_spec(exported)
    repository = site.repository
    with exclusive_change(repository):
        ensembles.tidy(site, on_event)
        ensembles.organs_outside(spec, site, on_event)
        before = _State.of(repository, spec.name)
        if before.in_service == spec.version:
            raise Conflict(f"model {spec.name}@{spec.version} is in service already")
        on_event(f"loading {spec.name}@{spec.version} beside the version in service")
        repository.stage(exported)
        try:
            site.triton.load(spec.name)
            site.triton.prove(spec)
            evidence = _judge(spec, before, site, request, on_event)
            on_event(f"switching {spec.name} to version {spec.version}")
            _switch(spec, site)
        except BaseException:
            before.restore(site.triton, spec)
            raise
        ensembles.join(spec, site, on_event, request.why)
        promotion = _record(site, spec, before, PromotionKind.PROMOTED, request, evidence)
    return promotion


def rollback(
    name: str,
    site: Site,
    *,
    to: int | None = None,
    why: str = "",
    on_event: Callable[[str], None] | None = None,
) -> Promotion:
    """Put the version back that served before the present one, or version `to`; seconds. With its
    first version a model leaves the ensembles.

    Raises:
        NotFound: there is no such version in the repository.
        Conflict: it is in service already, a promotion is under way, or an ensemble would have no
            model left.
        ConfigurationError, Unavailable: it does not answer any more; the present one stays.
    """
    repository = site.repository
    with exclusive_change(repository):
        say = on_event or (lambda line: None)
        ensembles.tidy(site, say)
        before = _State.of(repository, name)
        target = _before(name, before, site) if to is None else to
        if target is None:
            assert before.incumbent is not None
            ensembles.without(name, site, say, why)
            return _record(
                site, before.incumbent, before, PromotionKind.REMOVED, PromotionRequest(why=why), {}
            )
        if target == before.in_service:
            raise Conflict(f"model {name}@{target} is in service already")
        spec = _installed(repository, name, target)
        say(f"switching {name} back to version {target}")
        try:
            _switch(spec, site)
        except BaseException:
            before.restore(site.triton, None)
            raise
        record_versions(site.catalog, [spec.ref], action=ROLLED_BACK, who=user(), why=why)
        return _record(site, spec, before, PromotionKind.ROLLED_BACK, PromotionRequest(why=why), {})


@dataclass(frozen=True)
class _State:
    """How a model was served before the change."""

    name: str
    installed: frozenset[int]
    served: tuple[ModelSpec, ...]
    in_service: int | None

    @classmethod
    def of(cls, repository: TritonRepository, name: str) -> _State:
        return cls(
            name,
            frozenset(spec.version for spec in repository.installed(name)),
            repository.served(name),
            repository.in_service(name),
        )

    @property
    def incumbent(self) -> ModelSpec | None:
        return next((spec for spec in self.served if spec.version == self.in_service), None)

    def restore(self, triton: TritonModels, staged: ModelSpec | None) -> None:
        """Back to this state, on disk and in the server; a version that was added goes.

        A server that does not answer finds the repository as it was when it comes back.
        """
        repository = triton.repository
        if self.served:
            versions = [spec.version for spec in self.served]
            repository.serve_only(self.name, versions, self.in_service)
        with contextlib.suppress(AtlasError):
            if self.served:
                triton.load(self.name)
            elif staged is not None:
                triton.unload(self.name)
        if staged is not None and staged.version not in self.installed:
            with contextlib.suppress(NotFound):  # it was refused before it was installed
                repository.remove(self.name, staged.version)


def _switch(spec: ModelSpec, site: Site) -> None:
    site.repository.put_into_service(spec.name, spec.version)
    site.triton.load(spec.name)
    site.triton.prove(spec)


def _judge(
    spec: ModelSpec,
    before: _State,
    site: Site,
    request: PromotionRequest,
    on_event: Callable[[str], None],
) -> dict[str, float]:
    """Figures of the new version and of the one in service; refuses what is worse."""
    incumbent = before.incumbent
    both = [spec] if incumbent is None else [spec, incumbent]
    try:
        cases = evaluation_cases(
            site.catalog,
            spec.organs,
            dataset=request.dataset,
            without=[one.ref for one in both],
            limit=request.limit,
        )
    except NotFound:
        if request.force:
            return {}
        raise
    if len(cases) < site.min_cases and not request.force:
        raise PromotionRefused(
            f"too few cases judge model {spec.name}@{spec.version}",
            expected=f"at least {site.min_cases} (ATLASLOOP_PROMOTION_MIN_CASES)",
            got=len(cases),
            remedy="label more cases that it has not learnt from, or pass --force, which goes on "
            "record",
        )
    on_event(f"evaluating on {len(cases)} cases")
    with AttentionClient(site.attention) as client:
        scheme = site.catalog.organ_scheme()
        results = [evaluate(one, cases, client, site.store, scheme=scheme) for one in both]
    for result in results:
        record_evaluation(site.catalog, result)
    evidence = _figures(results) | _bound(incumbent, results, site)
    if evidence["mean_dice"] < evidence["at_least"] and not request.force:
        served = (
            "what a first version needs" if incumbent is None else f"{incumbent.version} in service"
        )
        refusal = PromotionRefused(
            f"model {spec.name}@{spec.version} is worse than {served}",
            expected=f"mean Dice of at least {evidence['at_least']:.4f}",
            got=f"{evidence['mean_dice']:.4f} on {len(cases)} cases",
            remedy="train it further, or pass --force, which goes on record",
        )
        refusal.evidence = evidence
        raise refusal
    return evidence


def _bound(incumbent: ModelSpec | None, results: list[Evaluation], site: Site) -> dict[str, float]:
    """What the new version is held against: the one in service, or the floor."""
    if incumbent is None:
        return {"at_least": site.floor}
    before = summarise(results[1].cases).mean_dice
    return {"margin": site.margin, "at_least": before - site.margin}


def _figures(results: list[Evaluation]) -> dict[str, float]:
    figures = {"cases": float(len(results[0].cases))}
    for suffix, result in zip(("", "_before"), results, strict=False):
        figures[f"mean_dice{suffix}"] = summarise(result.cases).mean_dice
    return figures


def _before(name: str, state: _State, site: Site) -> int | None:
    """t of the version that served before the present one: by the record, else the next lower; None
    where none did."""
    if state.in_service is None:
        raise NotFound(f"no version of model {name} is in service")
    for promotion in reversed(promotions(site.catalog, name)):
        promoted = promotion.kind is PromotionKind.PROMOTED
        if promoted and promotion.model.version == state.in_service:
            if promotion.previous_version is not None:
                return promotion.previous_version
            break
    lower = [version for version in state.installed if version < state.in_service]
    return max(lower, default=None)


def _installed(repository: TritonRepository, name: str, version: int) -> ModelSpec:
    for spec in repository.installed(name):
        if spec.version == version:
            return spec
    raise NotFound(
        f"model {name} has no version {version} in the repository",
        expected=", ".join(str(spec.version) for spec in repository.installed(name)) or "a model",
        remedy="promote it: it is tried first",
    )


def _record(
    site: Site,
    spec: ModelSpec,
    before: _State,
    kind: PromotionKind,
    request: PromotionRequest,
    evidence: dict[str, float],
) -> Promotion:
    few = evidence.get("cases", 0.0) < site.min_cases
    worse = evidence.get("mean_dice", 0.0) < evidence.get("at_least", 0.0)
    promotion = Promotion(
        model=ModelRef(name=spec.name, version=spec.version, sha256=spec.sha256),
        previous_version=before.in_service,
        kind=kind,
        # Only where it made a difference; otherwise the evaluation decided.
        forced=request.force and (few or worse),
        who=user(),
        why=request.why,
        evidence=evidence,
        created_at=now(),
    )
    record_promotion(site.catalog, promotion)
    return promotion
