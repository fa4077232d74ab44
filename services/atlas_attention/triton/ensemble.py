"""Which models an ensemble has, by what Triton reports of the models it has loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from atlas_core.errors import (
    ConfigurationError,
    NotFound,
)
from atlas_core.model_spec import ModelSpec, parse_ensemble
from atlas_core.triton_parameters import (
    IN_SERVICE_PARAMETER,
    SPEC_PARAMETER,
    descriptions,
    version_in_service,
)
from pydantic import ValidationError


def choose_ensemble(
    ready: Sequence[ModelSpec],
    wanted: Sequence[str],
    in_service: Mapping[str, int | None] | None = None,
) -> tuple[ModelSpec, ...]:
    """The ensemble: of every model the version in service, or the models `wanted`.

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
