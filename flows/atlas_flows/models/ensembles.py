"""Ensembles of a site: made, changed, put to use; and what the model server holds follows.

The catalog says which ensembles there are; Triton's repository follows it, and the server follows
the repository. A change is tried first (new members are loaded and answer), then it is one row of
the catalog, and then the server is brought to it, new members first: at every moment a call finds
the ensemble before the change or after it. What a killed change has left is done by the next one,
or at the next start (`reconcile`).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from atlas_core.catalog import (
    Catalog,
    current_ensembles,
    described,
    record_ensemble,
    record_versions,
)
from atlas_core.ensembles import (
    DEFAULT_ENSEMBLE,
    FOUND,
    PROMOTED,
    Ensemble,
    EnsembleState,
    Member,
    MemberRole,
)
from atlas_core.errors import AtlasError, Conflict, InvalidInput, NotFound
from atlas_core.frozen_model import first_fault
from atlas_core.model_spec import ModelSpec
from atlas_embedded.model_trials import end_abandoned_trials, exclusive_change, untouched
from atlas_models.serving import TritonRepository
from pydantic import ValidationError

from atlas_flows.models.compatibility import require_compatible
from atlas_flows.models.site import Site, user
from atlas_flows.settings import Places

_log = logging.getLogger(__name__)

OnEvent = Callable[[str], None]


@dataclass(frozen=True)
class EnsembleOrder:
    """What an ensemble is to be from now on.

    Attributes:
        ensemble: with the members that are wanted; versions in service are filled in.
        action: for the record: created, added unet, used, …
    """

    ensemble: Ensemble
    state: EnsembleState
    action: str
    why: str = ""


def adopt(repository: TritonRepository, catalog: Catalog) -> None:
    """Put on record what serves. As long as nobody has made or changed an ensemble, all models in
    service are the ensemble `default`; from then on only their versions are taken note of."""
    serving = _in_service(repository)
    if described(catalog):
        record_versions(catalog, [spec.ref for spec in serving], action=FOUND, who=user())
    elif serving:
        found = ensemble_of(DEFAULT_ENSEMBLE, [(spec, MemberRole.VOICE) for spec in serving])
        if found not in [known.ensemble for known in current_ensembles(catalog)]:
            record_ensemble(catalog, found, EnsembleState.IN_USE, action=FOUND, who=user())


def change(order: EnsembleOrder, site: Site, on_event: OnEvent = lambda line: None) -> None:
    """Make an ensemble what `order` says, and have the server hold what is needed then.

    Raises:
        Conflict: another change is under way.
        InvalidInput, LimitExceeded: a member cannot be one.
        ConfigurationError, Unavailable: a new member is refused, or does not answer; all stays as
            it was.
    """
    with exclusive_change(site.repository):
        tidy(site, on_event)
        wanted = with_members(order.ensemble, (), site)
        if order.state in (EnsembleState.IN_USE, EnsembleState.LOADED):
            with _trial(wanted, site, on_event):
                _record(order, wanted, site)
        else:
            _record(order, wanted, site)
        bring(site, on_event)


def reconcile(site: Site, on_event: OnEvent = lambda line: None) -> None:
    """Do what killed changes have left; at the start of a process, and whenever in doubt.

    Raises:
        Conflict: a change is under way.
        ConfigurationError, Unavailable: see `TritonModels.load`.
    """
    with exclusive_change(site.repository):
        tidy(site, on_event)
        bring(site, on_event)


def reconcile_at_start(here: Places) -> None:
    """`reconcile` at the start of a process. A change that is under way is left alone; without a
    server, the next change does it."""
    try:
        with Catalog.open(here.catalog_url) as catalog:
            reconcile(Site.of(here, catalog), lambda line: _log.warning("%s", line))
    except Conflict:
        return
    except AtlasError as error:
        _log.warning("what is loaded was not compared with the catalog: %s", error)


def tidy(site: Site, on_event: OnEvent) -> None:
    """End trials that were killed, and put on record what serves; the caller holds
    `exclusive_change`."""
    for reference in end_abandoned_trials(site.triton, site.catalog):
        on_event(f"{reference} was on trial in a promotion that was killed: unloaded")
    adopt(site.repository, site.catalog)


def bring(site: Site, on_event: OnEvent) -> None:
    """Bring repository and server to what the catalog says; the caller holds `exclusive_change`."""
    repository = site.repository
    wanted = {
        member.model.name: member.model
        for change in current_ensembles(site.catalog)
        if change.state in (EnsembleState.IN_USE, EnsembleState.LOADED)
        for member in change.ensemble.members
    }
    serving = {spec.name: spec for spec in _in_service(repository)}
    new = [wanted[name] for name in sorted(wanted.keys() - serving.keys())]
    for model in new:
        _, exported = site.models.find(model.name, model.version)
        repository.stage(exported)
        repository.put_into_service(model.name, model.version)
    repository.describe(described(site.catalog))
    # New ones first: with the last of them the server knows the change, and all of it at once.
    for name in [*(model.name for model in new), *sorted(wanted.keys() & serving.keys())]:
        if not site.triton.is_loaded(name):
            on_event(f"loading {name}")
            site.triton.load(name)
    for name in sorted(set(repository.models()) - wanted.keys()) if wanted else ():
        _retire(name, site, on_event)


def ensemble_of(
    name: str,
    members: Iterable[tuple[ModelSpec, MemberRole]],
    fusion_spacing_mm: tuple[float, float, float] | None = None,
) -> Ensemble:
    """An ensemble of these versions.

    Raises:
        InvalidInput: a model is named twice, there is no voice, or the grid cannot be.
    """
    chosen = list(members)
    voices = [spec.organs for spec, role in chosen if role is MemberRole.VOICE]
    try:
        return Ensemble(
            name=name,
            members=tuple(Member(model=spec.ref, role=role) for spec, role in chosen),
            fusion_spacing_mm=fusion_spacing_mm,
            organs=tuple(dict.fromkeys(organ for organs in voices for organ in organs)),
        )
    except ValidationError as error:
        raise InvalidInput(
            f"ensemble {name} cannot be",
            expected=first_fault(error).expected,
            got=", ".join(f"{spec.name}@{spec.version}" for spec, _ in chosen) or "no member",
        ) from None


def member_spec(name: str, version: int | None, site: Site) -> ModelSpec:
    """The version by which a model is a member: the one in service, else the newest there is.

    Raises:
        NotFound: there is no such model at this site.
        InvalidInput: another version than `version` is in service.
    """
    serving = {spec.name: spec for spec in _in_service(site.repository)}.get(name)
    if serving is None:
        return site.models.find(name, version)[0]
    if version not in (None, serving.version):
        raise InvalidInput(
            f"version {serving.version} of model {name} is in service, in every ensemble",
            got=f"{name}@{version}",
            remedy=f"leave the version out, and `atlasloop models promote {name}@{version}`",
        )
    return serving


def organs_outside(spec: ModelSpec, site: Site, on_event: OnEvent) -> None:
    """Say which organs of a model the atlas lacks.

    Raises:
        InvalidInput, LimitExceeded: see `require_compatible`.
    """
    for organ in require_compatible(spec, site.scheme):
        on_event(f"{spec.name}@{spec.version}: {organ} is no organ of this atlas; it takes no part")


def join(spec: ModelSpec, site: Site, on_event: OnEvent, why: str = "") -> None:
    """Put on record that a version serves, and have a model that is new join the ensemble in use;
    the caller holds `exclusive_change`."""
    record_versions(site.catalog, [spec.ref], action=PROMOTED, who=user(), why=why)
    known = current_ensembles(site.catalog)
    in_use = next((c for c in known if c.state is EnsembleState.IN_USE), None)
    needed = {name for c in known if c.state is not EnsembleState.IDLE for name in c.ensemble.names}
    if in_use is None:
        adopt(site.repository, site.catalog)
    elif spec.name not in needed:
        on_event(f"{spec.name} joins ensemble {in_use.ensemble.name}")
        grown = with_members(in_use.ensemble, [(spec, MemberRole.VOICE)], site)
        action = f"added {spec.name}"
        record_ensemble(site.catalog, grown, in_use.state, action=action, who=user(), why=why)
        bring(site, on_event)


def with_members(
    ensemble: Ensemble, members: Iterable[tuple[ModelSpec, MemberRole]], site: Site
) -> Ensemble:
    """The ensemble with further members, each in the version that serves.

    Raises:
        InvalidInput: see `ensemble_of`.
    """
    present = [(_spec_of(member, site), member.role) for member in ensemble.members]
    return ensemble_of(ensemble.name, [*present, *members], ensemble.fusion_spacing_mm)


def without(name: str, site: Site, on_event: OnEvent = lambda line: None, why: str = "") -> None:
    """Take a model out of every ensemble; the caller holds `exclusive_change`.

    Raises:
        NotFound: no ensemble has it.
        Conflict: it is the only voice of one.
    """
    having = [c for c in current_ensembles(site.catalog) if name in c.ensemble.names]
    if not having:
        raise NotFound(f"no ensemble has a model {name}")
    smaller = [(c, removed(c.ensemble, (name,), site)) for c in having]
    for before, after in smaller:
        record_ensemble(
            site.catalog, after, before.state, action=f"removed {name}", who=user(), why=why
        )
    bring(site, on_event)


def removed(ensemble: Ensemble, names: Iterable[str], site: Site) -> Ensemble:
    """The ensemble without these models.

    Raises:
        NotFound: it does not have one of them.
        Conflict: no voice would be left.
    """
    gone = tuple(names)
    for name in gone:
        if name not in ensemble.names:
            raise NotFound(
                f"ensemble {ensemble.name} has no model {name}",
                expected=", ".join(ensemble.names),
            )
    left = [member for member in ensemble.members if member.model.name not in gone]
    if not any(member.role is MemberRole.VOICE for member in left):
        raise Conflict(
            f"ensemble {ensemble.name} would have no voice left",
            got=f"without {', '.join(gone)}",
            remedy="add another model first, or use another ensemble",
        )
    return with_members(ensemble.model_copy(update={"members": tuple(left)}), (), site)


def _spec_of(member: Member, site: Site) -> ModelSpec:
    """The version of a member that serves, else the one on record."""
    serving = {spec.name: spec for spec in _in_service(site.repository)}
    model = member.model
    return serving.get(model.name) or site.models.find(model.name, model.version)[0]


def _record(order: EnsembleOrder, ensemble: Ensemble, site: Site) -> None:
    record_ensemble(
        site.catalog, ensemble, order.state, action=order.action, who=user(), why=order.why
    )


@contextlib.contextmanager
def _trial(ensemble: Ensemble, site: Site, on_event: OnEvent) -> Iterator[None]:
    """Members that do not serve yet are loaded and answer; gone again if the block fails."""
    repository = site.repository
    serving = {spec.name for spec in _in_service(repository)}
    tried: list[ModelSpec] = []
    try:
        for member in ensemble.members:
            spec, exported = site.models.find(member.model.name, member.model.version)
            organs_outside(spec, site, on_event)
            if spec.name not in serving:
                on_event(f"loading {spec.name}@{spec.version}")
                repository.stage(exported)
                tried.append(spec)
                site.triton.load(spec.name)
                site.triton.prove(spec)
        yield
    except BaseException:
        for spec in tried:
            with contextlib.suppress(AtlasError):
                site.triton.unload(spec.name)
            with contextlib.suppress(NotFound):
                repository.remove(spec.name, spec.version)
        raise


def _retire(name: str, site: Site, on_event: OnEvent) -> None:
    """Unload a model that no ensemble needs; what the repository alone has of it goes to the store
    of models. One that somebody works with waits for the next time."""
    repository = site.repository
    with untouched(repository, repository.served(name)) as free:
        if not free:
            return
        on_event(f"unloading {name}: no ensemble needs it")
        site.triton.unload(name)
        for spec in repository.installed(name):
            site.models.keep(spec)
        for spec in repository.installed(name):
            repository.remove(name, spec.version)


def _in_service(repository: TritonRepository) -> list[ModelSpec]:
    return [
        spec
        for name in repository.models()
        for spec in repository.served(name)
        if spec.version == repository.in_service(name)
    ]
