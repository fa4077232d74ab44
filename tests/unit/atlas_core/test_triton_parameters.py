"""What a model writes about itself into Triton's parameters is what is read from them."""

from __future__ import annotations

import pytest
from atlas_core.model_spec import ModelSpec
from atlas_core.triton_parameters import (
    IN_SERVICE_PARAMETER,
    descriptions,
    self_description,
    version_in_service,
)


def spec(version: int) -> ModelSpec:
    return ModelSpec(
        name="unet", version=version, architecture="unet", organs=("liver",),
        spacing_mm=(1.5, 1.5, 1.5), patch=(8, 8, 8), hu_window=(-175.0, 250.0), sha256="a" * 64,
    )  # fmt: skip


@pytest.mark.parametrize("in_service", [0, 1, None])
def test_what_is_written_is_read(in_service: int | None) -> None:
    specs = {str(version + 1): spec(version) for version in (0, 1)}
    parameters = self_description(specs.values(), in_service)
    found = {v: ModelSpec.model_validate_json(t) for v, t in descriptions(parameters).items()}
    assert found == specs
    assert version_in_service(parameters[IN_SERVICE_PARAMETER]) == in_service


@pytest.mark.parametrize("text", ["", "two", "-1", "1.5"])
def test_a_version_in_service_is_a_number(text: str) -> None:
    with pytest.raises(ValueError, match=f"not a number: '{text}'"):
        version_in_service(text)


def test_a_foreign_model_describes_nothing() -> None:
    assert descriptions({"gpu.memory": "1", "atlasloop.runtime": "openvino"}) == {}
