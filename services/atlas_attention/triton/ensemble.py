"""Which models an ensemble has, by what Triton says of the models it has loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from atlas_core.errors import (
    ConfigurationError,
    InvalidInput,
    NotFound,
)
from atlas_core.model_spec import ModelRef, ModelSpec
from pydantic import ValidationError

SPEC_PARAMETER = "atlasloop.spec."
"""Config parameter that holds the `ModelSpec` of one Triton version, as JSON."""


IN_SERVICE_PARAMETER = "atlasloop.in_service"
"""Config parameter: the Triton version that answers when none is asked for; "0": none. A new one
is loaded beside it until it has proved itself. Without the parameter: the newest."""


def choose(
    served: Sequence[ModelSpec],
    wanted: Sequence[str],
    in_service: Mapping[str, int | None] | None = None,
) -> tuple[ModelSpec, ...]:
    """The ensemble: of every model the version in service, or the models `wanted`.

    Args:
        wanted: ``"unet"`` (the version in service) or ``"unet@2"``; empty: all models.
        in_service: t of the version in service by model, None: none; of others, the newest.

    Returns:
        sorted by name and version.

    Raises:
        NotFound: a wanted model is not in service.
        InvalidInput: a malformed reference, or a model wanted twice.
    """
    told = in_service or {}
    current = {
        spec.name: spec
        for spec in sorted(served, key=lambda spec: spec.version)
        if told.get(spec.name, spec.version) == spec.version
    }
    if not wanted:
        return tuple(current[name] for name in sorted(current))
    exact = {(spec.name, spec.version): spec for spec in served}
    chosen: dict[tuple[str, int], ModelSpec] = {}
    for reference in wanted:
        name, version = ModelRef.parse(reference)
        spec = current.get(name) if version is None else exact.get((name, version))
        if spec is None:
            raise NotFound(
                f"model {reference} is not in service",
                expected=", ".join(f"{s.name}@{s.version}" for s in served) or "none is in service",
                got=reference,
            )
        if (spec.name, spec.version) in chosen:
            raise InvalidInput(f"model {reference} is named twice")
        chosen[spec.name, spec.version] = spec
    return tuple(chosen[key] for key in sorted(chosen))


def _described(parameters: Mapping[str, str], name: str, version: str) -> tuple[ModelSpec, ...]:
    """The description that the server carries for one version; nothing for a foreign model."""
    key = f"{SPEC_PARAMETER}{version}"
    if key not in parameters:
        return ()
    try:
        spec = ModelSpec.model_validate_json(parameters[key])
    except ValidationError as error:
        raise ConfigurationError(
            f"model {name} version {version} describes itself wrongly",
            expected=f"a ModelSpec in parameter {key}",
            got=error.errors()[0]["msg"],
            remedy="install the model again",
        ) from None
    if (spec.name, str(spec.triton_version)) != (name, version):
        raise ConfigurationError(
            "a model in service describes another one",
            expected=f"{name}, Triton version {version}",
            got=f"{spec.name}, Triton version {spec.triton_version}",
            remedy="install the model again",
        )
    return (spec,)


def _told_in_service(parameters: Mapping[str, str], name: str) -> dict[str, int | None]:
    """t of the version of `name` in service, None: none; nothing where the server does not say."""
    text = parameters.get(IN_SERVICE_PARAMETER, "")
    if not text.isdecimal():
        return {}
    return {name: int(text) - 1 if int(text) else None}
