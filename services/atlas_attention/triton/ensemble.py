"""Which models an ensemble has, by what Triton reports of the models it has loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from atlas_core.ensembles import DEFAULT_ENSEMBLE, EnsembleDescription, MemberRole
from atlas_core.errors import (
    ConfigurationError,
    InvalidInput,
    NotFound,
    Unavailable,
)
from atlas_core.geometry import Float3
from atlas_core.model_spec import ModelSpec, parse_ensemble
from atlas_core.triton_parameters import (
    ENSEMBLE_PARAMETER,
    IN_SERVICE_PARAMETER,
    SPEC_PARAMETER,
    described_ensembles,
    descriptions,
    version_in_service,
)
from pydantic import ValidationError


@dataclass(frozen=True)
class ServedEnsemble:
    """Models that work together in one call.

    Attributes:
        name: empty where models were named by hand.
        voices: whose predictions are fused, by name, each in its version in service.
        locator: finds where organs can be; None: there is none.
        fusion_spacing_mm: of the grid of the fusion; None: the finest of the voices'.
        missing: members of which the server has no version in service.
    """

    name: str
    voices: tuple[ModelSpec, ...]
    locator: ModelSpec | None = None
    fusion_spacing_mm: Float3 | None = None
    missing: tuple[str, ...] = ()

    def require_complete(self) -> None:
        """Raises `Unavailable` if a member is missing, or there is none."""
        if self.missing:
            raise Unavailable(
                f"ensemble {self.name} is not complete in the model server",
                expected=", ".join(sorted((*self.missing, *(s.name for s in self.voices)))),
                got=f"without {', '.join(self.missing)}",
                remedy="its members may still be loading; see `atlasloop status`, or take them out "
                "by `atlasloop ensemble remove`",
            )
        if not self.voices:
            raise Unavailable(
                "no model is in service", remedy="install models and load them into the server"
            )


@dataclass(frozen=True)
class ServerModels:
    """What the model server says of its models, at one moment.

    Attributes:
        ready: all versions that are loaded, by name and version.
        in_service: t of the version in service by model, None: no version is. Of a model that is
            not listed the newest version is in service.
        described: the ensembles that models name; of one name there are two while it changes.
    """

    ready: tuple[ModelSpec, ...] = ()
    in_service: Mapping[str, int | None] = field(default_factory=dict)
    described: tuple[tuple[str, EnsembleDescription], ...] = ()

    def ensembles(self) -> tuple[ServedEnsemble, ...]:
        """All that are loaded, by name."""
        if not self.described:
            return (self.in_use(),)
        names = sorted({name for name, _ in self.described})
        return tuple(self._newest(one for one in self.described if one[0] == n) for n in names)

    def in_use(self) -> ServedEnsemble:
        """The one that answers when none is named; where nobody describes any, all models in
        service.

        Raises:
            Unavailable: ensembles are described, and none is in use.
        """
        if not self.described:
            return ServedEnsemble(
                DEFAULT_ENSEMBLE, choose_ensemble(self.ready, (), self.in_service)
            )
        in_use = [one for one in self.described if one[1].in_use]
        if not in_use:
            raise Unavailable(
                "no ensemble is in use", remedy="choose one: `atlasloop ensemble use NAME`"
            )
        return self._newest(in_use)

    def choose(self, name: str = "", models: Sequence[str] = ()) -> ServedEnsemble:
        """The ensemble of that name, or the one in use, or `models` (see `choose_ensemble`).

        Args:
            name: empty: the one in use.
            models: with a name: the versions of its voices, exactly these.

        Raises:
            NotFound: no such ensemble, or a model that is not in service.
            Unavailable: members are missing, or nothing is in service.
            InvalidInput: malformed references, or others than the ensemble has.
        """
        if not name and models:
            return ServedEnsemble("", choose_ensemble(self.ready, models, self.in_service))
        found = self._named(name) if name else self.in_use()
        if not models:
            found.require_complete()
            return found
        pinned = choose_ensemble(self.ready, models, self.in_service)
        members = sorted((*found.missing, *(spec.name for spec in found.voices)))
        if [spec.name for spec in pinned] != members:
            raise InvalidInput(
                f"these are not the models of ensemble {name}",
                expected=", ".join(members),
                got=", ".join(models),
                remedy="the ensemble may have changed meanwhile: begin again",
            )
        return replace(found, voices=pinned, missing=())

    def _named(self, name: str) -> ServedEnsemble:
        known = self.ensembles()
        for one in known:
            if one.name == name:
                return one
        raise NotFound(
            f"ensemble {name} is not loaded",
            expected=", ".join(one.name for one in known),
            got=name,
            remedy=f"load it: `atlasloop ensemble use {name} --beside`",
        )

    def _newest(self, described: Iterable[tuple[str, EnsembleDescription]]) -> ServedEnsemble:
        """The newest one that is complete, else the newest."""
        newest_first = sorted(described, key=lambda one: one[1].revision, reverse=True)
        served = [self._served(*one) for one in newest_first]
        return next((one for one in served if not one.missing), served[0])

    def _served(self, name: str, described: EnsembleDescription) -> ServedEnsemble:
        current = {s.name: s for s in choose_ensemble(self.ready, (), self.in_service)}
        by_role: dict[MemberRole, list[ModelSpec]] = {role: [] for role in MemberRole}
        for member in sorted(described.members.keys() & current.keys()):
            by_role[described.members[member]].append(current[member])
        return ServedEnsemble(
            name,
            tuple(by_role[MemberRole.VOICE]),
            next(iter(by_role[MemberRole.LOCATOR]), None),
            described.fusion_spacing_mm,
            tuple(sorted(described.members.keys() - current.keys())),
        )


def agreed(said: Sequence[ServerModels], before: ServerModels | None = None) -> ServerModels:
    """What several servers serve together: every version that one of them has loaded. A switch of
    the version in service, or of an ensemble, counts when all say it; servers that have nothing
    loaded yet have no say.

    Args:
        before: what was agreed last, which stands where they disagree; None: nothing was.

    >>> old, new = (ServerModels(in_service={"unet": t}, ready=()) for t in (1, 2))
    >>> agreed([old, new], before=agreed([old])).in_service
    {'unet': 1}
    """
    voting = [one for one in said if one.ready] or list(said)
    if len(voting) == 1:
        return voting[0]
    ready = {spec for one in voting for spec in one.ready}
    stated: dict[str, Counter[int | None]] = {}
    for one in voting:
        for name, version in one.in_service.items():
            stated.setdefault(name, Counter())[version] += 1
    known = before.in_service if before is not None else {}
    in_service = {}
    for name, versions in stated.items():
        undecided = len(versions) > 1 and known.get(name) in versions
        in_service[name] = known[name] if undecided else versions.most_common(1)[0][0]
    return ServerModels(
        tuple(sorted(ready, key=lambda spec: (spec.name, spec.version))),
        in_service,
        _agreed_descriptions(voting),
    )


def _agreed_descriptions(
    voting: Sequence[ServerModels],
) -> tuple[tuple[str, EnsembleDescription], ...]:
    """Of each ensemble what all servers say of it; where they have nothing in common, what any
    does."""
    every: list[tuple[str, EnsembleDescription]] = []
    for models in voting:
        every += [one for one in models.described if one not in every]
    common = [one for one in every if all(one in models.described for models in voting)]
    settled = {name for name, _ in common}
    return (*common, *(one for one in every if one[0] not in settled))


def choose_ensemble(
    ready: Sequence[ModelSpec],
    wanted: Sequence[str],
    in_service: Mapping[str, int | None] | None = None,
) -> tuple[ModelSpec, ...]:
    """Of every model the version in service, or the models `wanted`.

    Args:
        ready: all versions that the server has loaded.
        wanted: ``"unet"`` (the version in service) or ``"unet@2"``; empty: all models.
        in_service: t of the version in service by model, None: no version is. Of a model that is
            not listed the newest version is in service.

    Returns:
        sorted by name.

    Raises:
        NotFound: a wanted model is not in service.
        InvalidInput: a malformed reference, or a model wanted twice, in whatever versions.
    """
    stated = in_service or {}
    current = {
        spec.name: spec
        for spec in sorted(ready, key=lambda spec: spec.version)
        if stated.get(spec.name, spec.version) == spec.version
    }
    if not wanted:
        return tuple(current[name] for name in sorted(current))
    exact = {(spec.name, spec.version): spec for spec in ready}
    chosen = []
    for reference, (name, version) in zip(wanted, parse_ensemble(wanted).items(), strict=True):
        spec = current.get(name) if version is None else exact.get((name, version))
        if spec is None:
            raise NotFound(
                f"model {reference} is not in service",
                expected=", ".join(f"{s.name}@{s.version}" for s in ready) or "none is in service",
                got=reference,
            )
        chosen.append(spec)
    return tuple(sorted(chosen, key=lambda spec: spec.name))


def described_spec(
    parameters: Mapping[str, str], name: str, triton_version: str
) -> ModelSpec | None:
    """What one version of model `name` says of itself; None: a foreign model, without description.

    Raises:
        ConfigurationError: the description is malformed, or another model's.
    """
    text = descriptions(parameters).get(triton_version)
    if text is None:
        return None
    try:
        spec = ModelSpec.model_validate_json(text)
    except ValidationError as error:
        raise ConfigurationError(
            f"model {name} version {triton_version} describes itself wrongly",
            expected=f"a ModelSpec in parameter {SPEC_PARAMETER}{triton_version}",
            got=error.errors()[0]["msg"],
            remedy="install the model again",
        ) from None
    if (spec.name, str(spec.triton_version)) != (name, triton_version):
        raise ConfigurationError(
            "a model in service describes another one",
            expected=f"{name}, Triton version {triton_version}",
            got=f"{spec.name}, Triton version {spec.triton_version}",
            remedy="install the model again",
        )
    return spec


def stated_in_service(parameters: Mapping[str, str], name: str) -> dict[str, int | None]:
    """t of the version of `name` in service, None: no version is; empty where the server does not
    say."""
    try:
        return {name: version_in_service(parameters.get(IN_SERVICE_PARAMETER, ""))}
    except ValueError:
        return {}


def stated_ensembles(parameters: Mapping[str, str], name: str) -> dict[str, EnsembleDescription]:
    """The ensembles that model `name` says are loaded.

    Raises:
        ConfigurationError: a description is malformed.
    """
    try:
        return described_ensembles(parameters)
    except ValueError:
        raise ConfigurationError(
            f"model {name} describes an ensemble wrongly",
            expected=f"an EnsembleDescription in parameter {ENSEMBLE_PARAMETER}NAME",
            remedy="`atlasloop up` writes it again",
        ) from None
