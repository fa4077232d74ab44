"""What an ensemble is: one version of each of its models."""

from __future__ import annotations

import pytest
from atlas_core.errors import InvalidInput
from atlas_core.model_spec import parse_ensemble


def test_models_are_named_with_or_without_a_version() -> None:
    ensemble = parse_ensemble(["unet@2", "nnunet"])
    assert list(ensemble.items()) == [("unet", 2), ("nnunet", None)]
    assert parse_ensemble([]) == {}


@pytest.mark.parametrize(
    "references", [["unet@0", "unet@1"], ["unet", "unet@1"], ["unet", "nnunet", "unet"]]
)
def test_one_model_in_two_versions_is_no_ensemble(references: list[str]) -> None:
    with pytest.raises(InvalidInput, match=r"one version per model.*named twice.*unet"):
        parse_ensemble(references)


@pytest.mark.parametrize("reference", ["", "UNet", "unet@", "unet@-1", "../unet", "unet@2@3"])
def test_a_malformed_reference_is_refused(reference: str) -> None:
    with pytest.raises(InvalidInput, match="malformed model reference"):
        parse_ensemble(["nnunet", reference])
