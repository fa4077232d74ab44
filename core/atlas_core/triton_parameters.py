"""How a model describes itself to Triton: parameters of its configuration, written and read here.

    atlasloop.spec.VERSION  the `ModelSpec` of that Triton version, as JSON; one for each version
    atlasloop.in_service    the Triton version that answers when a client asks for none; "0": no
                            version does. A new version is loaded beside it until it has proved
                            itself. Without the parameter the newest version answers.
    atlasloop.ensemble.NAME an `EnsembleDescription` as JSON; every model has those of all ensembles
                            that are loaded. Without any, all models in service are one ensemble.

While ensembles change, models carry descriptions of two revisions for a moment: the newest one
counts of which all members are there, so a call works with the ensemble before or after the change.

`atlas_models.serving` writes a model repository with them, and `atlas_attention.triton` reads them
from the server. A model without a description is foreign, and none of ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from atlas_core.ensembles import EnsembleDescription
from atlas_core.model_spec import ModelSpec

SPEC_PARAMETER = "atlasloop.spec."
IN_SERVICE_PARAMETER = "atlasloop.in_service"
ENSEMBLE_PARAMETER = "atlasloop.ensemble."


def self_description(specs: Iterable[ModelSpec], in_service: int | None) -> dict[str, str]:
    """The parameters of a model that serves `specs`, its versions.

    Args:
        in_service: t of the version in service; None: no version is.
    """
    parameters = {f"{SPEC_PARAMETER}{s.triton_version}": s.model_dump_json() for s in specs}
    parameters[IN_SERVICE_PARAMETER] = "0" if in_service is None else str(in_service + 1)
    return parameters


def ensemble_parameters(ensembles: Mapping[str, EnsembleDescription]) -> dict[str, str]:
    """The parameters by which a model names the ensembles that are loaded."""
    return {f"{ENSEMBLE_PARAMETER}{name}": e.model_dump_json() for name, e in ensembles.items()}


def described_ensembles(parameters: Mapping[str, str]) -> dict[str, EnsembleDescription]:
    """The ensembles that a model names.

    Raises:
        ValueError: one of the descriptions is malformed.
    """
    return {
        name.removeprefix(ENSEMBLE_PARAMETER): EnsembleDescription.model_validate_json(text)
        for name, text in parameters.items()
        if name.startswith(ENSEMBLE_PARAMETER)
    }


def descriptions(parameters: Mapping[str, str]) -> dict[str, str]:
    """The described versions: Triton version → its `ModelSpec` as JSON, not yet checked."""
    return {
        name.removeprefix(SPEC_PARAMETER): text
        for name, text in parameters.items()
        if name.startswith(SPEC_PARAMETER)
    }


def version_in_service(text: str) -> int | None:
    """t of the version in service by the value of `IN_SERVICE_PARAMETER`; None: no version is.

    Raises:
        ValueError: `text` is not a number, for instance empty because the parameter is missing.
    """
    if not text.isdecimal():
        raise ValueError(f"{IN_SERVICE_PARAMETER} is not a number: {text!r}")
    return int(text) - 1 if int(text) else None
