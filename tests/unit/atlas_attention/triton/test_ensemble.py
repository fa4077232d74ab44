"""Which models answer: the version in service, never one that is only on trial."""

from __future__ import annotations

import pytest
from atlas_attention.triton.ensemble import choose_ensemble
from atlas_core.errors import InvalidInput, NotFound
from atlas_core.model_spec import ModelSpec


def spec(name: str, version: int) -> ModelSpec:
    return ModelSpec(
        name=name, version=version, architecture="unet", organs=("liver",),
        spacing_mm=(1.5, 1.5, 1.5), patch=(8, 8, 8), hu_window=(-175.0, 250.0), sha256="a" * 64,
    )  # fmt: skip


READY = [spec("nnunet", 0), spec("unet", 0), spec("unet", 1), spec("unet", 2)]


def refs(chosen: tuple[ModelSpec, ...]) -> list[str]:
    return [f"{one.name}@{one.version}" for one in chosen]


def test_where_no_version_is_stated_the_newest_answers() -> None:
    assert refs(choose_ensemble(READY, [])) == ["nnunet@0", "unet@2"]
    assert refs(choose_ensemble(READY, ["unet"])) == ["unet@2"]


def test_the_version_in_service_answers_although_a_newer_one_is_loaded() -> None:
    in_service: dict[str, int | None] = {"unet": 1, "nnunet": 0}
    assert refs(choose_ensemble(READY, [], in_service)) == ["nnunet@0", "unet@1"]
    assert refs(choose_ensemble(READY, ["unet"], in_service)) == ["unet@1"]
    # Any loaded version answers by its number: that is how a new one is tried.
    assert refs(choose_ensemble(READY, ["unet@2"], in_service)) == ["unet@2"]


def test_a_model_of_which_no_version_is_in_service_is_left_out() -> None:
    assert refs(choose_ensemble(READY, [], {"unet": None})) == ["nnunet@0"]
    with pytest.raises(NotFound, match="unet is not in service"):
        choose_ensemble(READY, ["unet"], {"unet": None})


def test_a_version_in_service_that_is_not_ready_is_not_replaced_by_another() -> None:
    assert refs(choose_ensemble(READY, [], {"unet": 7})) == ["nnunet@0"]


@pytest.mark.parametrize("wanted", [["unet@0", "unet@1"], ["unet", "unet@2"], ["unet", "unet"]])
def test_one_model_in_two_versions_is_no_ensemble(wanted: list[str]) -> None:
    with pytest.raises(InvalidInput, match="one version per model"):
        choose_ensemble(READY, wanted)
